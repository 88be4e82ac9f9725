"""The same runtime on CUDA tensors: fp64 outputs equal the CPU's, drafted or not, preempted, and read late."""

import random
from dataclasses import replace

import pytest
import torch

from runtime.backends.captured.recording import CudaRecorder
from runtime.engine import Engine
from runtime.kv.cache import KVCache
from runtime.loading import make_backend
from runtime.model.decoder import Decoder
from runtime.pacing.measuring import is_current, measure_backend
from runtime.pacing.pace import Pace
from runtime.speculation.draft_model import ModelDrafter
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.redrafter.loading import make_redrafter
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always
from tests.runtime.heads import head_config, head_tensors
from tests.runtime.test_captured import captured
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.test_speculation import FAMILIES
from tests.runtime.tiny import EOS, PLAN, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch with CUDA"),
]


def model_drafter(checkpoint, plan):
    decoder = Decoder(checkpoint, torch.float64, "torch", plan.max_seq_len, "cuda")
    cache = KVCache(checkpoint.spec, plan.num_blocks, plan.block_size, torch.float64, "cuda")
    return ModelDrafter(decoder, cache, 260)


def redrafter():
    """A head of bfloat16 beside a target of float64; it drafts in one launch."""
    config = head_config()
    embedding = torch.randn(260, 32, generator=torch.Generator().manual_seed(4)).bfloat16().cuda()
    made = make_redrafter(config, head_tensors(config), embedding, embedding, "torch")
    assert made.draft_pass is not None
    return made


@pytest.mark.parametrize("limits", [{}, {"num_blocks": 24, "max_num_tokens": 20}], ids=["roomy", "cramped"])
@pytest.mark.parametrize("drafter", ["none", "ngram", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_on_a_gpu_equal_those_on_the_cpu(tmp_path, family, drafter, limits):
    checkpoint = make_checkpoint(tmp_path / "target", FAMILIES[family])
    plan = replace(PLAN, **limits)
    drafters = {
        "none": lambda: None,
        "ngram": NgramDrafter,
        "model": lambda: model_drafter(make_checkpoint(tmp_path / "draft", seed=5), plan),
    }
    backend = make_backend(checkpoint, plan, drafters[drafter](), read_lag=1, device="cuda")
    engine = Engine(backend, frozenset([EOS]), Always(TreeShape(10, 3, 4), TreeShape(6, 1, 5)))
    rng = random.Random(2)
    wanted = [random_request(rng) for _ in range(6)]
    assert [request.output_ids for request in run(engine, wanted)] == [alone(checkpoint, one) for one in wanted]


@pytest.mark.parametrize("limits", [{}, {"num_blocks": 24, "max_num_tokens": 20}], ids=["roomy", "cramped"])
@pytest.mark.parametrize("drafter", ["none", "ngram", "redrafter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_captured_graphs_equal_those_on_the_cpu(tmp_path, family, drafter, limits):
    checkpoint = make_checkpoint(tmp_path / "target", FAMILIES[family])
    policy = Always(TreeShape(10, 3, 4), TreeShape(6, 1, 5), None)
    made = {"none": lambda: None, "ngram": NgramDrafter, "redrafter": redrafter}[drafter]()
    engine = captured(checkpoint, made, policy, recorder=CudaRecorder(), device="cuda", **limits)
    rng = random.Random(2)
    wanted = [random_request(rng) for _ in range(12)]
    assert [request.output_ids for request in run(engine, wanted)] == [alone(checkpoint, one) for one in wanted]


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "graphs"])
def test_costs_are_measured_on_a_gpu_and_chunks_go_by_them(tmp_path, recorded):
    checkpoint = make_checkpoint(tmp_path)
    if recorded:
        backend = captured(checkpoint, recorder=CudaRecorder(), device="cuda").backend
    else:
        backend = make_backend(checkpoint, PLAN, read_lag=1, device="cuda")
        backend.cache.storage.fill_(torch.nan)
    costs = measure_backend(backend)
    assert all(seconds > 0 for seconds in costs.decode_seconds.values())
    assert is_current(backend, costs)
    paced = Engine(backend, frozenset([EOS]), pace=Pace(costs, 1.5))
    rng = random.Random(3)
    wanted = [random_request(rng) for _ in range(8)]
    assert [request.output_ids for request in run(paced, wanted)] == [alone(checkpoint, one) for one in wanted]
