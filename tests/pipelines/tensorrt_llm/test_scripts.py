"""The scripts of a folder, run as a user of a GPU host runs them, with TensorRT-LLM faked."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from pipelines.export.hf import export_hf
from runtime.formats.checkpoint import Checkpoint
from tests.pipelines.tensorrt_llm.folders_of import compile_folder, make_model, no_draft
from tests.pipelines.tensorrt_llm.trtllm_host import make_host
from tests.runtime.heads import head_config, write_random_head

SERVE = "1.3.0rc29"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), "qwen2")[0]


def sh(script: Path, *arguments: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(script), *arguments], capture_output=True, text=True, env=env, cwd=cwd, timeout=60)


def head_folder(folder: Path) -> Path:
    head = head_config(hidden_size=64, exit_dim=64, vocab_size=302, dialect="tensorrt_llm")
    write_random_head(no_draft(folder, "redrafter"), head)
    return folder


@pytest.mark.parametrize("weights", ["bundle", "host"])
def test_the_build_script_makes_an_engine_and_leaves_the_bundle_alone(tmp_path, checkpoint, weights):
    out, _ = compile_folder(tmp_path, checkpoint, head_folder(tmp_path / "draft"), tp_size=2, weights=weights)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    env = make_host(tmp_path / "host", "1.2.1")
    done = sh(out / "build.sh", "made here", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / "made here"
    assert sorted(path.name for path in (made / "engine").iterdir()) == ["config.json", "rank0.engine", "rank1.engine"]
    assert "building 2 ranks" in (made / "build.log").read_text()
    assert (made / "model.cache").read_text() == "cold"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert (made / "checkpoint").exists() == (weights == "host")
    again = sh(out / "build.sh", "made here", env=env, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (1, "error: made here exists already; name a new folder\n")
    warm = sh(out / "build.sh", "warm", env=env | {"TIMING_CACHE": str(made / "model.cache")}, cwd=tmp_path)
    assert warm.returncode == 0
    assert (tmp_path / "warm/model.cache").read_text() == "warm"


def test_the_command_is_the_formats_with_every_limit(tmp_path, checkpoint):
    settings = {"max_batch_size": 8, "max_seq_len": 200, "max_num_tokens": 400, "gemm_plugin": "disable", "workers": 2,
                "tokens_per_block": 64, "strip_plan": True, "opt_num_tokens": 16}  # fmt: skip
    out, _ = compile_folder(tmp_path, checkpoint, head_folder(tmp_path / "draft"), **settings)
    command = json.loads((out / "engine.json").read_text())["command"]
    assert command[0] == "trtllm-build"
    assert command[-1] == "--strip_plan"
    flags = dict(zip(command[1:-1:2], command[2:-1:2], strict=True))
    assert flags == {
        "--checkpoint_dir": "checkpoint", "--output_dir": "engine", "--max_batch_size": "8", "--max_input_len": "199",
        "--max_seq_len": "200", "--max_beam_width": "1", "--max_num_tokens": "400", "--kv_cache_type": "paged",
        "--tokens_per_block": "64", "--gpt_attention_plugin": "auto", "--gemm_plugin": "disable",
        "--remove_input_padding": "enable", "--context_fmha": "enable", "--use_paged_context_fmha": "enable",
        "--multiple_profiles": "disable", "--workers": "2", "--opt_num_tokens": "16",
        "--input_timing_cache": "model.cache", "--output_timing_cache": "model.cache",
        "--speculative_decoding_mode": "explicit_draft_tokens",
    }  # fmt: skip


def test_without_reuse_and_chunks_the_engine_is_built_without_paged_context(tmp_path, checkpoint):
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), kv_cache_reuse=False,
                            chunked_prefill=False, kv_cache_type="continuous")  # fmt: skip
    text = (out / "build.sh").read_text()
    assert "--kv_cache_type continuous" in text
    assert "--use_paged_context_fmha disable" in text
    assert "--gemm_plugin bfloat16" in text
    assert "tokens_per_block" not in text
    assert "speculative" not in text


def test_a_host_without_the_program_or_with_another_version_is_refused_in_one_line(tmp_path, checkpoint):
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"))
    none = sh(out / "build.sh", "made", env=dict(os.environ), cwd=tmp_path)
    assert none.returncode == 1
    assert none.stderr.startswith("error: trtllm-build is not on PATH; install TensorRT-LLM 1.2.1")
    other = sh(out / "build.sh", "made", env=make_host(tmp_path / "other", "1.1.0"), cwd=tmp_path)
    assert other.stderr == (
        "error: TensorRT-LLM 1.1.0 is installed, and this folder is for 1.2.1; install that, or build the bundle with "
        "target.tensorrt_llm.version=1.1.0\n"
    )
    env = make_host(tmp_path / "bare", "1.2.1")
    mute = sh(out / "build.sh", "made", env=env | {"PYTHONPATH": ""}, cwd=tmp_path)
    assert "has no package tensorrt_llm" in mute.stderr
    assert not (tmp_path / "made").exists()


def test_the_check_says_yes_and_builds_nothing_and_a_local_version_is_the_same(tmp_path, checkpoint):
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"))
    done = sh(out / "build.sh", "--check", env=make_host(tmp_path / "host", "1.2.1+cu13"), cwd=tmp_path)
    assert done.stdout == "TensorRT-LLM 1.2.1+cu13 and the files are what this folder needs\n"
    assert not list(out.rglob("*.engine"))


def test_a_damaged_file_is_refused_before_anything_is_built(tmp_path, checkpoint):
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"))
    rank = out / "checkpoint/rank0.safetensors"
    rank.write_bytes(rank.read_bytes()[:-1] + b"x")
    done = sh(out / "build.sh", "made", env=make_host(tmp_path / "host", "1.2.1"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {out} is damaged; copy the bundle again"
    assert not (tmp_path / "made").exists()


def test_a_build_that_fails_leaves_its_log_and_no_engine(tmp_path, checkpoint):
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"))
    env = make_host(tmp_path / "host", "1.2.1") | {"FAKE_TRTLLM": "fails"}
    done = sh(out / "build.sh", "made", env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "out of memory while building" in (tmp_path / "made/build.log").read_text()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["build.log"]
    assert done.stderr == "error: trtllm-build did not make an engine; its log: made/build.log\n"


@pytest.mark.parametrize("weights", ["bundle", "host"])
def test_the_serve_script_serves_the_models_own_folder(tmp_path, checkpoint, weights):
    out, output = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), version=SERVE, tp_size=2,
                                 weights=weights)  # fmt: skip
    export_hf(Checkpoint(checkpoint), tmp_path / "expected", 10**9)
    folder = [] if weights == "bundle" else ["made"]
    env = make_host(tmp_path / "host", SERVE, ("trtllm-serve",))
    done = sh(out / "serve.sh", *folder, "--port", "9000", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["arguments"] == [
        "model", "--config", "serve.yaml", "--tp_size", "2", "--pp_size", "1", "--max_batch_size", "64",
        "--max_num_tokens", "8192", "--max_seq_len", "256", "--max_beam_width", "1", "--port", "9000",
    ]  # fmt: skip
    model = Path(said["folder"]) / "model"
    expected = {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}
    assert {path.name: path.read_bytes() for path in model.iterdir()} == expected
    assert load_file(model / "model.safetensors").keys() == load_file(checkpoint.parent / "hf/model.safetensors").keys()
    assert "serve it with serve.sh" in output.summary
    if weights == "host":
        assert model.parent == tmp_path / "made"
        assert not (out / "model/model.safetensors").exists()
        again = sh(out / "serve.sh", "made", env=env, cwd=tmp_path)
        assert json.loads(again.stdout)["folder"] == said["folder"]  # made once
        assert "usage: sh serve.sh FOLDER" in sh(out / "serve.sh", env=env, cwd=tmp_path).stderr


def test_the_serve_configuration_is_what_the_version_takes(tmp_path, checkpoint):
    expected = {
        "enable_chunked_prefill": False,
        "kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.5, "tokens_per_block": 64},
    }
    ngram = {"decoding_type": "NGram", "max_draft_len": 4, "max_matching_ngram_size": 2}
    for drafter, speculation in (("none", {}), ("ngram", {"speculative_config": ngram,
                                                          "disable_overlap_scheduler": True})):  # fmt: skip
        folder = tmp_path / drafter
        folder.mkdir()
        out, _ = compile_folder(folder, checkpoint, no_draft(folder / "draft", drafter), version=SERVE,
                                chunked_prefill=False, kv_cache_fraction=0.5, tokens_per_block=64, max_draft_len=4,
                                max_matching_ngram_size=2)  # fmt: skip
        assert yaml.safe_load((out / "serve.yaml").read_text()) == expected | speculation


@pytest.mark.parametrize("weights", ["bundle", "host"])
def test_a_smaller_model_drafts_from_a_folder_of_its_own(tmp_path, checkpoint, weights):
    smaller, _ = make_model(tmp_path / "smaller", "llama-tied", num_layers=1, vocab=302)
    draft = shutil.copytree(smaller, tmp_path / "draft")
    no_draft(draft, "model")
    out, _ = compile_folder(tmp_path, checkpoint, draft, version=SERVE, weights=weights)
    assert yaml.safe_load((out / "serve.yaml").read_text())["speculative_config"] == {
        "decoding_type": "DraftTarget", "max_draft_len": 3, "speculative_model": "draft_model",
    }  # fmt: skip
    folder = [] if weights == "bundle" else ["made"]
    env = make_host(tmp_path / "host", SERVE, ("trtllm-serve",))
    done = sh(out / "serve.sh", *folder, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    served = Path(json.loads(done.stdout.splitlines()[-1])["folder"])
    found = load_file(served / "draft_model/model.safetensors")
    assert found.keys() == load_file(smaller.parent / "hf/model.safetensors").keys()
