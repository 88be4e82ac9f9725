"""ONNX Runtime runs the graph that we write: its logits are our decoder's, whatever a step computes."""

import random

import ml_dtypes
import numpy
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from pipelines.onnx.graph import GraphOptions, write_step_model
from runtime.formats.step_graph import cache_names
from tests.pipelines.onnx_models import CACHE_LEN, Rows, batch_of, onnx_backend, torch_backend
from tests.pipelines.unified_models import FAMILIES, tiny_model, write_checkpoint

PROMPT_LENS = (11, 40, 11)  # past windows (5) and original contexts (16, 32) of FAMILIES; two share a pass
# node 0 is the root; two branches, the longer four deep
PARENTS = [0, 0, 1, 1, 2, 4, 0]
# float64: an ONNX norm has its epsilon in float32, 3e-13 off; logits are up to about 10.
CLOSE = {"atol": 1e-4, "rtol": 0}
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


def steps(rng):
    """A prefill of three prompts, one of them in two chunks beside decodes, plain decodes, a tree, and what follows."""

    def text(count):
        return [rng.randrange(96) for _ in range(count)]

    a, b, c = PROMPT_LENS
    yield "prefill", batch_of([Rows(5, 0, text(a)), Rows(1, 0, text(b)), Rows(2, 0, text(c))])
    yield "decode", batch_of([Rows(1, b, text(1)), Rows(5, a, text(1)), Rows(2, c, text(1))])
    yield (
        "a first chunk beside decodes",
        batch_of([Rows(5, a + 1, text(1)), Rows(7, 0, text(9)), Rows(1, b + 1, text(1))], logit_rows=[0, 10]),
    )
    yield "a second chunk alone", batch_of([Rows(7, 9, text(13))], logit_rows=[12])
    yield "no logits wanted", batch_of([Rows(3, 0, text(6))], logit_rows=[])
    yield "trees", batch_of([Rows(2, c + 1, text(7), PARENTS), Rows(7, 22, text(7), PARENTS)])
    yield "a chunk as long as the tree beside it", batch_of([Rows(7, 22, text(7), PARENTS), Rows(0, 0, text(7))])
    yield "a tree beside a plain row", batch_of([Rows(7, 22, text(7), PARENTS), Rows(1, b + 2, text(1))])
    yield "decode after", batch_of([Rows(block, start, text(1)) for block, start in ((1, b + 3), (7, 23), (2, c + 1))])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_step_gives_the_decoder_s_logits(tmp_path, family, dtype):
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family)
    ours, theirs = onnx_backend(checkpoint, tmp_path / "onnx", dtype), torch_backend(checkpoint, dtype)
    for kind, batch in steps(random.Random(3)):
        logits, hidden = ours.forward(batch)
        expected = theirs.forward(batch)
        assert logits.shape == expected.logits.shape, kind
        assert logits.dtype == expected.logits.dtype
        torch.testing.assert_close(logits, expected.logits, atol=TOLERANCES[dtype], rtol=0, msg=lambda m, k=kind: k + m)
        torch.testing.assert_close(hidden, expected.hidden, atol=TOLERANCES[dtype], rtol=0)


def errors(found, expected):
    """Mean and largest difference, as shares of the largest value."""
    difference = (found - expected).abs() / expected.abs().max()
    return float(difference.mean()), float(difference.max())


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_stored_in_16_bits_are_widened_and_nothing_else_is_rounded(tmp_path, family, stored):
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family, stored)
    batch = batch_of([Rows(0, 0, list(range(30)))])
    found = onnx_backend(checkpoint, tmp_path / "onnx", "float32").forward(batch)
    torch.testing.assert_close(found.logits, torch_backend(checkpoint, "float32").forward(batch).logits, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_is_as_near_to_float32_as_rounding_allows(tmp_path, family):
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family, "float16")
    ours, exact = onnx_backend(checkpoint, tmp_path / "onnx", "float16"), torch_backend(checkpoint, "float32")
    for kind, batch in steps(random.Random(3)):
        found, expected = ours.forward(batch).logits, exact.forward(batch).logits
        if len(found):
            mean, largest = errors(found, expected)
            assert mean < 2e-3, kind  # four roundings of 2^-11 a layer, and the logits' own
            assert largest < 2e-2, kind


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_bfloat16_graph_computes_what_it_says(tmp_path, family):
    """ONNX Runtime has no bfloat16 kernels for CPUs; ONNX's own reference evaluator runs the file, slowly."""
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family, "bfloat16")
    path = write_step_model(checkpoint, GraphOptions("bfloat16", CACHE_LEN), tmp_path)
    onnx.checker.check_model(path, full_check=True)
    evaluator = ReferenceEvaluator(onnx.load(path))
    token_ids, rows = numpy.arange(24)[None], numpy.arange(24)
    mask = rows[:, None] >= numpy.arange(CACHE_LEN)
    if checkpoint.spec.sliding_window:
        mask &= rows[:, None] - checkpoint.spec.sliding_window < numpy.arange(CACHE_LEN)
    shape = (1, checkpoint.spec.num_kv_heads, CACHE_LEN, checkpoint.spec.head_dim)
    caches = {name: numpy.zeros(shape, ml_dtypes.bfloat16) for name in cache_names(2)}
    logits = evaluator.run(
        ["logits"],
        {"token_ids": token_ids, "position_ids": token_ids, "write_starts": numpy.zeros(1, numpy.int64),
         "attention_mask": mask[None, None], "logit_rows": rows, **caches},
    )[0]  # fmt: skip
    batch = batch_of([Rows(0, 0, token_ids[0].tolist())])
    exact = torch_backend(checkpoint, "float32").forward(batch).logits
    ours, of_torch = (
        errors(found, exact)[0]
        for found in (torch.from_numpy(logits), torch_backend(checkpoint, "bfloat16").forward(batch).logits)
    )
    assert ours < 2 * of_torch  # whose logits, unlike the graph's, are not rounded


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_a_graph_that_reads_all_of_its_caches_gives_the_same(tmp_path, family):
    """What TensorRT gets: a mask as long as the cache, and no slices."""
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family)
    whole = onnx_backend(checkpoint, tmp_path / "onnx", "float32", slices_cache=False)
    exact = torch_backend(checkpoint, "float32")
    for _, batch in steps(random.Random(3)):
        torch.testing.assert_close(whole.forward(batch).logits, exact.forward(batch).logits, **CLOSE)


def test_the_graph_is_standard_onnx_but_for_two_functions_a_layer(tmp_path):
    checkpoint = write_checkpoint(tmp_path, tiny_model("qwen3"), "qwen3")
    path = write_step_model(checkpoint, GraphOptions("float32", CACHE_LEN), tmp_path)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    ours = [node.op_type for node in model.graph.node if node.domain]
    assert ours == ["rope_kv_write", "attention"] * 2
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 24), ("enginewright", 1)}
    assert not any(node.domain for function in model.functions for node in function.node)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[-1].attribute if a.name == "to"}
    assert attributes == {"to": onnx.TensorProto.FLOAT}, "logits leave as float32"


def test_weights_are_the_checkpoint_s_own_bytes_and_no_others(tmp_path):
    checkpoint = write_checkpoint(tmp_path, tiny_model("llama2"), "llama2")
    path = write_step_model(checkpoint, GraphOptions("float32", CACHE_LEN), tmp_path / "onnx")
    model = onnx.load(path, load_external_data=False)
    data = checkpoint.weights_path.read_bytes()
    weights = dict(checkpoint.tensors())
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            at = {entry.key: entry.value for entry in tensor.external_data}
            assert at["location"] == "weights.safetensors"
            start = int(at["offset"])
            found = torch.frombuffer(bytearray(data[start : start + int(at["length"])]), dtype=torch.float32)
            assert torch.equal(found.view(list(tensor.dims)), weights.pop(tensor.name))
        else:
            assert tensor.name in ("rope_cos", "rope_sin")
    assert not weights


def test_equal_models_give_equal_bytes(tmp_path):
    checkpoint = write_checkpoint(tmp_path, tiny_model("llama"), "llama")
    options = GraphOptions("float32", CACHE_LEN)
    assert len({write_step_model(checkpoint, options, tmp_path / name).read_bytes() for name in "ab"}) == 1
