"""ONNX Runtime runs the draft head's graph: the same trees as our head in torch, for every kind of head."""

import random

import onnx
import pytest
import torch

from pipelines.onnx.draft_graph import write_draft_model
from runtime.errors import EnginewrightError
from runtime.speculation.redrafter import load_redrafter
from runtime.speculation.redrafter.head_file import HeadDescription, write_head
from runtime.speculation.redrafter.onnx_head import load_onnx_redrafter
from runtime.speculation.tree import TreeShape
from tests.pipelines.onnx_models import onnx_session
from tests.runtime.drafting import Always
from tests.runtime.heads import head_config, head_tensors
from tests.runtime.test_engine import random_request, run
from tests.runtime.test_onnx_backend import LIMITS, make_engine
from tests.runtime.test_redrafter import draft_context
from tests.runtime.test_speculation import outputs
from tests.runtime.tiny import SPEC, make_checkpoint

SHAPES = [TreeShape(12, 4, 4), TreeShape(6, 1, 5)]
HEADS = {
    "apple": {},
    "tensorrt_llm": {"dialect": "tensorrt_llm"},
    "rows of its own": {"tied_head": False, "exit_dim": 20},
    "no blocks": {"num_blocks": 0},
}


def head_of(folder, dtype="float64", **changes):
    config = head_config(**changes)
    tensors = head_tensors(config, dtype=getattr(torch, dtype))
    write_head(folder / "draft", HeadDescription(config, "tiny", "0" * 64, "1" * 64), tensors)
    return folder / "draft"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", HEADS)
def test_a_graph_drafts_the_trees_of_its_head(tmp_path, kind, shape):
    checkpoint = make_checkpoint(tmp_path, SPEC)
    head_dir = head_of(tmp_path, **HEADS[kind])
    graph = write_draft_model(head_dir, checkpoint, "float64", tmp_path)
    onnx.checker.check_model(graph, full_check=True)
    context = draft_context(3)
    found = load_onnx_redrafter(graph, head_dir, checkpoint).propose(context, shape)
    expected = load_redrafter(head_dir, checkpoint, torch.float64, "torch").propose(context, shape)
    for part, of_torch in zip(found, expected, strict=True):
        assert torch.equal(part, of_torch)
    assert (found.token_ids[:, 1:] >= 0).all()


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_weights_of_either_file_are_widened(tmp_path, stored):
    checkpoint = make_checkpoint(tmp_path, SPEC, dtype=stored)
    head_dir = head_of(tmp_path, stored)
    head = load_onnx_redrafter(write_draft_model(head_dir, checkpoint, "float32", tmp_path), head_dir, checkpoint)
    exact = load_redrafter(head_dir, checkpoint, torch.float32, "torch")
    context = draft_context(2, torch.float32)
    for part, of_torch in zip(head.propose(context, SHAPES[0]), exact.propose(context, SHAPES[0]), strict=True):
        assert torch.equal(part, of_torch)


def test_a_whole_engine_on_onnx_runtime_says_what_it_says_without_drafts(tmp_path):
    checkpoint = make_checkpoint(tmp_path, SPEC)
    session = onnx_session(checkpoint, tmp_path, "float64", LIMITS.block_size)
    head_dir = head_of(tmp_path)
    drafter = load_onnx_redrafter(write_draft_model(head_dir, checkpoint, "float64", tmp_path), head_dir, checkpoint)
    rng = random.Random(6)
    wanted = [random_request(rng) for _ in range(6)]
    policy = Always(*SHAPES)
    drafted = make_engine(session, drafter=drafter, policy=policy)
    assert outputs(run(drafted, wanted)) == outputs(run(make_engine(session), wanted))
    assert policy.emitted


def test_a_head_for_another_model_is_refused(tmp_path):
    checkpoint = make_checkpoint(tmp_path, SPEC)
    head_dir = head_of(tmp_path, vocab_size=261)
    with pytest.raises(EnginewrightError, match="a draft head for vocab_size 261, but this model has 260"):
        write_draft_model(head_dir, checkpoint, "float32", tmp_path)
