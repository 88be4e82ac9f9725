"""Builds through the real command line: a head trained in TensorRT-LLM's dialect, the engine where it is installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.deploy.options import DeployOptions
from pipelines.deploy.workload import workload
from pipelines.stages.compile_tensorrt_llm import STAGE
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.llm import LLM
from runtime.speculation.redrafter.head_file import read_head
from tests.pipelines.tensorrt_llm.folders_of import compile_folder, make_model, no_draft, plan_of
from tests.pipelines.tensorrt_llm.trtllm_host import make_host
from tests.pipelines.test_cli import REPOSITORY, command
from tests.pipelines.test_draft_stage import SMALL
from tests.pipelines.tiny_models import make_hf_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built where TensorRT-LLM 1.2.1 is (a fake that checks what it gets), with a head of its dialect."""
    root = tmp_path_factory.mktemp("root")
    model = make_hf_folder(root / "tiny", max_len=1024, dtype="bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in make_host(root / "host", "1.2.1").items():
            patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", "1")
        done = command_with_path(root, f"model={model}", "experiment=smoke", "target=[tensorrt_llm]", "draft=train",
                                 "draft.keep=true", "draft.train.dialect=tensorrt_llm", *SMALL,
                                 "target.tensorrt_llm.tp_size=2", "tracking=off")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (root / "bundles/latest").resolve()


def command_with_path(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `command`, with the fake's package found besides ours."""
    import os

    environment = {**os.environ, "ENGINEWRIGHT_HOME": str(root)}
    environment["PYTHONPATH"] = f"{REPOSITORY}:{environment['PYTHONPATH']}"
    return subprocess.run([sys.executable, "-m", "pipelines", *arguments], capture_output=True, text=True,
                          env=environment, cwd=root, timeout=120)  # fmt: skip


def runtime_command(name: str, bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "runtime", name, str(bundle), *arguments], capture_output=True,
                          text=True, cwd=REPOSITORY, timeout=60)  # fmt: skip


def test_the_engine_its_log_and_timing_cache_are_in_the_bundle(bundle: Path) -> None:
    engine = bundle / "engines/tensorrt_llm"
    files = {path.relative_to(engine).as_posix() for path in engine.rglob("*") if path.is_file()}
    assert files == {
        "build.log", "build.sh", "checkpoint/config.json", "checkpoint/rank0.safetensors",
        "checkpoint/rank1.safetensors", "engine.json", "engine/config.json", "engine/rank0.engine",
        "engine/rank1.engine", "files.sha256", "model.cache",
    }  # fmt: skip
    assert "building 2 ranks" in (engine / "build.log").read_text()
    plan = plan_of(engine)
    assert (plan["version"], plan["speculation"], plan["built_for"] != "") == ("1.2.1", "redrafter", True)
    log = next((bundle.parents[1] / "cache/compile_tensorrt_llm").glob("*/stage.log")).read_text()
    assert "building 2 ranks" in log
    assert list((bundle.parents[1] / "cache").rglob("1.2.1-*.cache"))


def test_the_head_in_the_rank_files_is_the_one_that_drafts_in_the_bundle(bundle: Path) -> None:
    description, tensors = read_head(bundle / "draft")
    assert description.config.dialect == "tensorrt_llm"
    ranks = [load_file(bundle / f"engines/tensorrt_llm/checkpoint/rank{rank}.safetensors") for rank in range(2)]
    for name in ("drafter.input_proj.weight", "drafter.rnn_u.bias", "drafter.layers.0.linear.weight"):
        assert torch.equal(torch.cat([rank[name] for rank in ranks]), tensors[name])
    embedding = load_file(bundle / "weights.safetensors")["transformer.vocab_embedding.weight"]
    assert torch.equal(torch.cat([rank["drafter.lm_head.weight"] for rank in ranks]), embedding)


def test_the_manifest_and_the_commands_say_who_runs_it(bundle: Path) -> None:
    target = open_bundle(bundle).manifest["targets"]["tensorrt_llm"]
    assert target["requires"] == {"tensorrt_llm": "==1.2.1"}
    assert target["topology"] == {"tensor_parallel": 2, "pipeline_parallel": 1}
    assert (target["arch"], target["speculation"]) == ("nvidia", "redrafter")
    reason = (
        "TensorRT-LLM 1.2.1 runs it, this runtime does not; on a host that has it: sh engines/tensorrt_llm/build.sh"
    )
    for report in ("verify_tensorrt_llm/report.json", "bench_tensorrt_llm/summary.json"):
        said = json.loads((bundle / "attestations" / report).read_text())
        assert list(said) == ["not_run"]
        assert said["not_run"].startswith(reason)
    text = runtime_command("inspect", bundle).stdout
    assert "tensorrt_llm: NOT VERIFIED: TensorRT-LLM 1.2.1 runs it" in text
    assert "tp 2, pp 1, drafts: redrafter" in text
    assert "trtllm-build --checkpoint_dir checkpoint" in text
    for name in ("verify", "bench"):
        done = runtime_command(name, bundle)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "TensorRT-LLM runs this engine, this runtime does not" in done.stderr
    doctor = runtime_command("doctor", bundle)
    assert doctor.returncode == 1
    assert reason in doctor.stdout
    with pytest.raises(EnginewrightError, match="TensorRT-LLM runs this engine"):
        LLM(bundle, "tensorrt_llm")
    with pytest.raises(EnginewrightError, match="name another target"):
        workload(open_bundle(bundle), DeployOptions(target="tensorrt_llm"))


def test_the_rebuild_command_repeats_the_settings(bundle: Path) -> None:
    text = runtime_command("inspect", bundle).stdout
    (line,) = (line for line in text.splitlines() if line.startswith("rebuild"))
    for setting in ("TARGET=tensorrt_llm", "target.tensorrt_llm.tp_size=2", "target.tensorrt_llm.version=1.2.1",
                    "draft.train.dialect=tensorrt_llm"):  # fmt: skip
        assert setting in line


def test_where_nothing_is_installed_the_bundle_says_that_nothing_was_built(tmp_path: Path) -> None:
    model = make_hf_folder(tmp_path / "tiny", max_len=1024, dtype="bfloat16")
    done = command(tmp_path, f"model={model}", "experiment=smoke", "target=[cpu,tensorrt_llm]", "verify=off",
                   "bench=off", "tracking=off", "target.tensorrt_llm.weights=host", real=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundle = (tmp_path / "bundles/latest").resolve()
    assert (
        "NOT BUILT: TensorRT-LLM 1.2.1 was not where the bundle was built" in runtime_command("inspect", bundle).stdout
    )
    assert not list(bundle.rglob("rank*.safetensors"))
    env = make_host(tmp_path / "host", "1.2.1")
    moved = shutil.move(bundle, tmp_path / "copied")
    made = subprocess.run(["sh", f"{moved}/engines/tensorrt_llm/build.sh", str(tmp_path / "made")], env=env,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "made/engine/rank0.engine").is_file()
    assert open_bundle(Path(moved)).targets == ["cpu", "tensorrt_llm"]  # nothing was added to it


def enter(host: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in host.items():
        monkeypatch.setenv(name, value)


def test_another_installed_version_builds_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = make_model(tmp_path, "llama-tied")
    enter(make_host(tmp_path / "host", "1.1.0"), monkeypatch)
    out, output = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), installed="1.1.0")
    assert "NOT BUILT: 1.1.0 is installed here; build.sh builds it" in output.summary
    assert not (out / "engine").exists()
    assert STAGE.hardware_bound  # what is installed here decides


def test_a_failed_build_is_one_line_with_a_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = make_model(tmp_path, "llama-tied")
    enter(make_host(tmp_path / "host", "1.2.1") | {"FAKE_TRTLLM": "fails"}, monkeypatch)
    with pytest.raises(EnginewrightError, match=r"did not make an engine.*target\.tensorrt_llm\.build=false leaves"):
        compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), installed="1.2.1")
    shutil.rmtree(tmp_path / "bundle")
    out, _ = compile_folder(tmp_path, checkpoint, tmp_path / "draft", installed="1.2.1", build=False)
    assert not (out / "engine").exists()


def test_an_engine_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = make_model(tmp_path, "llama-tied")
    enter(make_host(tmp_path / "host", "1.2.1") | {"FAKE_TRTLLM": "other"}, monkeypatch)
    with pytest.raises(EnginewrightError, match=r"the engine is of TensorRT-LLM 1\.1\.0, not 1\.2\.1"):
        compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), installed="1.2.1")


def test_the_timing_cache_of_one_build_warms_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = make_model(tmp_path, "llama-tied")
    enter(make_host(tmp_path / "host", "1.2.1"), monkeypatch)
    for state in ("cold", "warm"):
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), installed="1.2.1")
        assert (out / "model.cache").read_text() == state
