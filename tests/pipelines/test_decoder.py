"""The one decoder against transformers' model of each family, short and past the window or the original context."""

import pytest
import torch

from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.engine_plan import EnginePlan
from runtime.loading import make_backend
from runtime.sampling import SamplingParams
from runtime.scoring import score
from tests.pipelines.unified_models import FAMILIES, tiny_model, write_checkpoint

LONG = 120  # past every window (5) and every original context (16, 32) of FAMILIES


def make_engine(checkpoint, dtype="float64", linear="torch", max_num_tokens=128):
    return Engine(make_backend(checkpoint, EnginePlan(dtype, linear, 4, 128, max_num_tokens, 8, 64)))


@pytest.mark.parametrize("max_num_tokens", [128, 7], ids=["whole", "in chunks of 7"])
@pytest.mark.parametrize("length", [1, 12, LONG])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_in_fp64(tmp_path, family, length, max_num_tokens):
    model = tiny_model(family)
    engine = make_engine(write_checkpoint(tmp_path, model, family), max_num_tokens=max_num_tokens)
    ids = torch.randint(96, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    with torch.inference_mode():
        expected = model.double()(torch.tensor([ids])).logits[0]
    # transformers computes rotary angles and norms in float32 even for a float64 model
    assert (score(engine, ids) - expected).abs().max() <= 2e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("dtype", "linear", "tolerance"),
    [
        ("float32", "onednn", 1e-4),
        ("float32", "torch", 1e-4),
        ("bfloat16", "onednn", 0.05),
        ("float16", "torch", 0.01),
        ("float16", "onednn_float32", 0.01),
    ],
)
def test_packed_and_rounded_engines_stay_near_fp32(tmp_path, dtype, linear, tolerance):
    model = tiny_model("llama")
    engine = make_engine(write_checkpoint(tmp_path, model, "llama"), dtype, linear)
    ids = list(range(40))
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    error = (score(engine, ids) - expected).abs().mean() / expected.abs().mean()
    assert error <= tolerance


def test_float16_on_packed_linears_runs_where_the_cpu_has_its_products_and_is_refused_elsewhere(tmp_path):
    checkpoint = write_checkpoint(tmp_path, tiny_model("llama"), "llama", "float16")
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        packed, plain = (score(make_engine(checkpoint, "float16", kind), [1, 2, 3]) for kind in ("onednn", "torch"))
        assert (packed - plain).abs().max() <= 0.01 * plain.abs().max()
        return
    with pytest.raises(EnginewrightError, match=r"no float16 products for this CPU.*target\.cpu\.linear=torch"):
        make_engine(checkpoint, "float16", "onednn")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_chunk_that_wants_no_logits_runs_on_packed_weights(tmp_path, dtype):
    checkpoint = write_checkpoint(tmp_path, tiny_model("llama"), "llama")
    ids = list(range(40))
    whole = score(make_engine(checkpoint, dtype, "onednn"), ids, first=39)
    chunked = score(make_engine(checkpoint, dtype, "onednn", max_num_tokens=16), ids, first=39)
    assert (whole - chunked).abs().max() <= (1e-4 if dtype == "float32" else 0.1) * whole.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers_generate(tmp_path, family):
    model = tiny_model(family)
    engine = make_engine(write_checkpoint(tmp_path, model, family))
    prompt = [5, 90, 31, 7]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None)[0, 4:]
    request = engine.add(prompt, SamplingParams(max_tokens=40))
    while engine.has_work:
        engine.step()
    assert request.output_ids == expected.tolist()
