"""What does not go together is refused in one line that names the value, the bound and what to write instead."""

import re
from dataclasses import replace

import pytest

from pipelines.loading import load_config
from pipelines.target_config import TensorrtLlmTargetConfig
from pipelines.tensorrt_llm.checks import check_engine, check_redrafter, check_split, lengths_of
from pipelines.tensorrt_llm.speculation import choose_speculation
from pipelines.tensorrt_llm.versions import flow_of
from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec, RopeScaling
from tests.pipelines.tensorrt_llm.folders_of import no_draft
from tests.pipelines.tensorrt_llm.trtllm_host import make_host
from tests.runtime.heads import head_config, write_random_head

SPEC = ModelSpec("LlamaForCausalLM", 260, 48, 6, 12, 4, 4, 96, 4096)
HEAD = head_config(hidden_size=48, exit_dim=48, dialect="tensorrt_llm")


def settings(**changes):
    return TensorrtLlmTargetConfig(**changes)


@pytest.mark.parametrize(
    ("version", "flow"),
    [("0.20", "build"), ("1.0.0", "build"), ("1.2.0rc5", "build"), ("1.2.1", "build"), ("1.3.0rc0", "serve"),
     ("1.3.0rc29", "serve"), ("1.4.0rc1", "serve"), ("2.0", "serve")],
)  # fmt: skip
def test_a_versions_flow(version, flow):
    assert flow_of(version) == flow


@pytest.mark.parametrize("version", ["0.19.0", "1.2.2", "newest", ""])
def test_a_version_that_nobody_knows_is_refused(version):
    with pytest.raises(EnginewrightError, match=rf"target\.tensorrt_llm\.version is '{version}'; it must be"):
        settings(version=version)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp_size": 0}, "target.tensorrt_llm.tp_size is 0; it must be at least 1"),
        ({"weights": "disk"}, "target.tensorrt_llm.weights is 'disk'; it must be bundle or host"),
        ({"tokens_per_block": 48}, "tokens_per_block is 48; it must be a power of two"),
        ({"max_num_tokens": 10}, "max_num_tokens is 10; it must be at least target.tensorrt_llm.max_batch_size, 64"),
        ({"multiple_profiles": True, "opt_num_tokens": 8}, "opt_num_tokens is 8; it must be 0 with"),
        ({"kv_cache_type": "continuous"}, "kv_cache_type is 'continuous'; it must be paged with"),
        ({"kv_cache_type": "disabled"}, "kv_cache_type is 'disabled'; it must be paged or continuous"),
        ({"gemm_plugin": "fp8"}, "gemm_plugin is 'fp8'; it must be auto or disable"),
        ({"version": "1.3.0rc29", "gemm_plugin": "disable"}, "gemm_plugin is 'disable'; it must be left as it is with"),
        ({"version": "1.3.0rc29", "max_input_len": 100}, "max_input_len is 100; it must be left as it is with"),
        (
            {"version": "1.3.0rc29", "redrafter": "on"},
            "redrafter is 'on'; it must be auto or off with version 1.3.0rc29",
        ),
    ],
)
def test_settings_that_contradict_each_other_fail_before_any_work(changes, message):
    with pytest.raises(EnginewrightError, match=re.escape(message)):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp_size": 5}, "tp_size is 5; it must divide the model's 12 attention heads"),
        ({"tp_size": 3}, "tp_size is 3; it must divide the model's 4 key/value heads, or be a multiple of them"),
        ({"tp_size": 6}, "tp_size is 6; it must divide the model's 4 key/value heads"),
        ({"pp_size": 4}, "pp_size is 4; it must divide the model's 6 layers"),
    ],
)
def test_a_split_that_does_not_come_out_even_is_refused(changes, message):
    with pytest.raises(EnginewrightError, match=re.escape(message)):
        check_split(settings(**changes), SPEC)


def test_splits_that_come_out_even_pass():
    for tp_size in (1, 2, 4, 12):
        check_split(settings(tp_size=tp_size, pp_size=3), SPEC)


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"max_seq_len": 5000}, {}, "max_seq_len is 5000; the model was trained for at most 4096 tokens"),
        ({"max_input_len": 4096}, {}, "max_input_len is 4096; it must be below the 4096 tokens of a whole text"),
        ({}, {"sliding_window": 1024}, "max_seq_len is 4096; an engine of TensorRT-LLM 1.2.1 does not carry"),
        ({}, {"rope_scaling": RopeScaling("yarn", 4.0)}, "does not compute YaRN's rotary scaling"),
        ({"version": "0.20"}, {"architecture": "Qwen3ForCausalLM"}, "Qwen3ForCausalLM needs 1.0 or newer"),
        ({}, {"architecture": "PhiForCausalLM"}, "this is PhiForCausalLM"),
        ({"chunked_prefill": False, "kv_cache_reuse": False, "max_num_tokens": 4000}, {},
         "max_num_tokens is 4000; without chunked_prefill and kv_cache_reuse it must hold the longest prompt"),
    ],
)  # fmt: skip
def test_a_model_that_the_graph_does_not_compute_is_refused(changes, spec, message):
    with pytest.raises(EnginewrightError, match=re.escape(message)):
        check_engine(settings(**changes), replace(SPEC, **spec))


def test_a_window_that_the_engines_texts_do_not_leave_is_no_obstacle():
    config, spec = settings(max_seq_len=1024), replace(SPEC, architecture="MistralForCausalLM", sliding_window=1024)
    check_engine(config, spec)
    assert lengths_of(config, spec) == (1023, 1024)


@pytest.mark.parametrize(
    ("changes", "spec", "head", "message"),
    [
        ({"version": "1.3.0rc29"}, {}, {}, "version is 1.3.0rc29, which has no ReDrafter"),
        ({"version": "0.20"}, {}, {}, "version is 0.20; ReDrafter needs 1.0 here"),
        ({}, {"architecture": "Qwen3ForCausalLM", "qk_norm": True}, {},
         "ReDrafter for LlamaForCausalLM and Qwen2ForCausalLM; this is Qwen3ForCausalLM"),
        ({}, {"architecture": "MistralForCausalLM"}, {}, "this is MistralForCausalLM"),
        ({}, {}, {"dialect": "apple"}, "the draft head is of the dialect 'apple'"),
        ({}, {}, {"exit_dim": 96, "tied_head": False}, "exit_dim is 96, twice the hidden size"),
        ({"pp_size": 2}, {}, {}, "ReDrafter needs target.tensorrt_llm.pp_size=1"),
        ({"max_beam_width": 2}, {}, {}, "max_beam_width=1; they are 1, paged and 2"),
        ({"tp_size": 4}, {}, {"exit_dim": 50, "tied_head": False}, "must divide the draft head's exit_dim, 50"),
        ({"max_num_tokens": 1600}, {}, {}, "a full batch of ReDrafter's trees has 1664 tokens"),
    ],
)  # fmt: skip
def test_a_head_that_the_graph_does_not_compute_is_refused(changes, spec, head, message):
    with pytest.raises(EnginewrightError, match=re.escape(message)):
        check_redrafter(settings(**changes), replace(SPEC, **spec), replace(HEAD, **head))


def choose(folder, head, **changes):
    write_random_head(no_draft(folder, "redrafter"), head)
    return choose_speculation(settings(**changes), SPEC, folder)


def test_a_head_of_another_dialect_stays_out_with_a_reason_unless_it_is_insisted_on(tmp_path):
    apple = replace(HEAD, dialect="apple")
    found = choose(tmp_path / "auto", apple)
    assert found.kind == "none"
    assert "draft.train.dialect=tensorrt_llm trains one" in found.reason
    newer = choose(tmp_path / "newer", apple, version="1.3.0rc29")
    assert (newer.kind, newer.reason) == (
        "none", "TensorRT-LLM 1.3.0rc29 has no ReDrafter; draft=ngram and draft=model it has",
    )  # fmt: skip
    with pytest.raises(EnginewrightError, match="of the dialect 'apple'"):
        choose(tmp_path / "on", apple, redrafter="on")


def test_a_head_that_was_trained_for_tensorrt_llm_is_never_left_out_unasked(tmp_path):
    assert choose(tmp_path / "fits", HEAD).kind == "redrafter"
    with pytest.raises(EnginewrightError, match=r"or write target\.tensorrt_llm\.redrafter=off"):
        choose(tmp_path / "pp", HEAD, pp_size=2)
    with pytest.raises(EnginewrightError, match="has no ReDrafter: it went with the TensorRT backend"):
        choose(tmp_path / "new", HEAD, version="1.3.0rc29")
    assert choose(tmp_path / "off", HEAD, pp_size=2, redrafter="off").reason == "target.tensorrt_llm.redrafter=off"


def test_drafters_that_a_version_lacks_are_named(tmp_path):
    for drafter in ("ngram", "model"):
        draft = no_draft(tmp_path / drafter, drafter)
        found = choose_speculation(settings(), SPEC, draft)
        assert (found.kind, found.reason) == (
            "none", f"draft={drafter} drafts from version 1.3 on, not in engines of 1.2.1",
        )  # fmt: skip
        assert choose_speculation(settings(version="1.3.0rc29"), SPEC, draft).kind == drafter
    with pytest.raises(EnginewrightError, match="redrafter is 'on', and the bundle's drafter is 'none'"):
        choose_speculation(settings(redrafter="on"), SPEC, no_draft(tmp_path / "none"))


def test_the_installed_version_is_taken_where_it_is_asked_for(tmp_path, monkeypatch):
    override = ["target=[tensorrt_llm]", "target.tensorrt_llm.version=installed"]
    with pytest.raises(EnginewrightError, match="neither trtllm-build nor trtllm-serve is on PATH"):
        load_config(override)
    for name, value in make_host(tmp_path, "1.3.0rc29", ("trtllm-serve",)).items():
        monkeypatch.setenv(name, value)
    found = load_config(override).target.tensorrt_llm
    assert found is not None
    assert found.version == "1.3.0rc29"
    with pytest.raises(EnginewrightError, match=r"strip_plan is True; it must be left as it is with version 1\.3"):
        load_config([*override, "target.tensorrt_llm.strip_plan=true"])


def test_float32_and_unknown_settings_are_refused_by_name():
    with pytest.raises(EnginewrightError, match="bfloat16 or float16 with target tensorrt_llm"):
        load_config(["target=[cpu,tensorrt_llm]", "precision=fp32"])
    with pytest.raises(EnginewrightError, match=r"nearest: 'target\.tensorrt_llm\.tp_size'"):
        load_config(["target=[tensorrt_llm]", "target.tensorrt_llm.tp_sise=2"])
    assert load_config(["target=[cpu,cuda,tensorrt_llm]"]).target.names == ("cpu", "cuda", "tensorrt_llm")
