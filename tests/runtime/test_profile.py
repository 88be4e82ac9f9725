"""A profile: every op's time under its own name, its least bytes by the sizes of the model, memory by use."""

import json

import pytest
import torch

from runtime.benchmark.memory_use import weight_bytes
from runtime.benchmark.op_costs import Cost, op_costs
from runtime.benchmark.op_times import COPIES, OTHER, op_of, times_of
from runtime.benchmark.profile import profile_engine
from runtime.benchmark.profile_text import as_text
from runtime.benchmark.settings import ProfileSettings
from runtime.cli import main
from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec
from tests.runtime.test_cli import bundle  # noqa: F401
from tests.runtime.tiny import PLAN, SPEC, make_engine

SETTINGS = ProfileSettings(batch_size=2, prompt_len=16, new_tokens=32)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("enginewright::residual_rms_norm", "rms_norm"),
        ("rms_norm_wide_out_kernel", "rms_norm"),
        ("attention_plan_kernel", "attention"),
        ("sample_chunks_kernel", "sample"),
        ("layer_linear_16_kernel", "layer_step"),
        ("layer_small_qkv_1_8_kernel", "layer_step"),
        ("layer_wide_logits_8_kernel", "layer_step"),
        ("rows_begin_kernel", "layer_step"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "linear"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16>", "linear"),
        ("mkldnn::_linear_pointwise", "linear"),
        ("decoder_step_kernel", "decoder_step"),
        ("Memcpy HtoD (Pinned -> Device)", COPIES),
        ("void at::native::vectorized_elementwise_kernel<4>", OTHER),
    ],
)
def test_kernels_and_operations_are_named_by_their_op(name, op):
    assert op_of(name) == op


def test_times_add_up_by_op_longest_first():
    times = times_of([("silu_mul_kernel", 1.0), ("aten::add", 2.5), ("silu_mul_kernel", 1.0)])
    assert list(times) == [OTHER, "silu_mul"]
    assert (times["silu_mul"].calls, times["silu_mul"].seconds) == (2, 2.0)


def test_costs_of_a_model_that_can_be_counted_by_hand():
    spec = ModelSpec("LlamaForCausalLM", vocab_size=10, hidden_size=4, num_layers=1, num_heads=2, num_kv_heads=1,
                     head_dim=2, intermediate_size=3, max_position_embeddings=64)  # fmt: skip
    costs = op_costs(spec, 2, 1, [5, 7])  # two requests, a token each
    weights = 4 * (4 + 2 * 2) + 4 * 4 + 3 * 4 * 3  # qkv, dense, feed-forward
    assert costs["linear"] == Cost(2 * (weights + 40), 2 * 2 * (weights + 40))
    assert costs["attention"] == Cost((5 + 7) * 2 * 2 * 2, 4 * (5 + 7) * 4)
    assert costs["decoder_step"].num_bytes == costs["linear"].num_bytes + costs["attention"].num_bytes
    assert costs["sample"].num_bytes == 2 * 10 * 4
    prompt = op_costs(spec, 2, 3, [3])
    assert prompt["linear"].num_bytes == costs["linear"].num_bytes, "weights count once"
    assert prompt["attention"] == Cost(3 * 8, 4 * (1 + 2 + 3) * 4)
    assert Cost(100.0, 300.0).seconds(10.0, 100.0) == 10.0


def test_a_window_bounds_what_is_seen():
    windowed = ModelSpec("MistralForCausalLM", 10, 4, 1, 2, 1, 2, 3, 64, sliding_window=4)
    assert op_costs(windowed, 2, 1, [9])["attention"] == Cost(4 * 8, 4 * 4 * 4)


def test_passes_are_profiled_apart_and_memory_by_use(checkpoint):
    engine = make_engine(checkpoint)
    profile = profile_engine(engine, SPEC, SETTINGS)
    assert not engine.has_work
    assert (profile.prefill.passes, profile.decode.passes) == (1, SETTINGS.new_tokens - 1)
    rows = {row.op: row for row in profile.decode.ops}
    assert {"linear", "attention", "rope_kv_write", "rms_norm", "silu_mul", "sample", "emit_tokens"} <= set(rows)
    assert rows["linear"].calls == 4 * SPEC.num_layers + 1
    assert rows["attention"].calls == SPEC.num_layers
    assert rows["linear"].roofline > 0
    assert rows["emit_tokens"].roofline is None
    assert sum(row.us for row in profile.decode.ops) > 0
    assert profile.memory.kv == engine.backend.cache.num_bytes
    assert profile.memory.graphs is None
    text = as_text(profile, SETTINGS)
    assert "2 requests of 16 tokens" in text
    assert text.count("attention") == 2


def test_weights_that_are_shared_count_once(checkpoint):
    backend = make_engine(checkpoint).backend
    embedding = SPEC.vocab_size * SPEC.hidden_size  # lies apart from the head that it is tied to
    expected = 8 * (SPEC.num_parameters + embedding) + 2 * backend.decoder.rope.cos.nbytes
    assert weight_bytes(backend) == expected
    backend.decoder.spare = torch.zeros(10)
    assert weight_bytes(backend) == expected + 40


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("prompt_len", 0), ("new_tokens", 1)])
def test_a_profile_of_nothing_is_refused(field, value):
    with pytest.raises(EnginewrightError, match=f"profile {field} is {value}"):
        ProfileSettings(**{field: value})


def test_more_than_a_step_holds_is_refused(checkpoint):
    with pytest.raises(EnginewrightError, match="is one step of 80; this engine takes 64 tokens and 4 requests"):
        profile_engine(make_engine(checkpoint), SPEC, ProfileSettings(4, 20))


def test_the_command_prints_tables_or_json(bundle, capsys):  # noqa: F811
    options = ["--batch-size", "1", "--prompt-len", "16", "--new-tokens", "32"]
    main(["profile", str(bundle), *options])
    assert "decode:" in capsys.readouterr().out
    main(["profile", str(bundle), *options, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["target"], found["batch_size"]) == ("cpu", 1)
    assert found["memory"]["kv"] == PLAN.kv_cache_bytes(SPEC)
    assert {row["op"] for row in found["decode"]["ops"]} >= {"linear", "attention"}
