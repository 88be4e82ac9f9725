"""An engine for NVIDIA GPUs alone, built where there is none: what the bundle has, and what it says was not run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.formats.bundle import open_bundle
from tests.pipelines.test_cli import REPOSITORY, command
from tests.pipelines.tiny_models import make_hf_folder

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    model = make_hf_folder(root / "tiny", hidden=128, heads=2, kv_heads=1, max_len=1024, num_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        done = command(root, f"model={model}", "experiment=smoke", "target=[cuda]", "target.cuda.archs=[sm_80]",
                       "tracking=off", real=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("NOT RUN: no NVIDIA GPU and no driver") == 2
    return (root / "bundles/latest").resolve()


def runtime_command(name: str, bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "runtime", name, str(bundle), *arguments], capture_output=True,
                          text=True, cwd=REPOSITORY, timeout=60)  # fmt: skip


def test_the_manifest_says_what_runs_the_engine(bundle: Path) -> None:
    targets = open_bundle(bundle).manifest["targets"]
    assert list(targets) == ["cuda"]
    assert (targets["cuda"]["archs"], targets["cuda"]["never_run"]) == (["sm_80"], ["sm_80"])
    assert (targets["cuda"]["minimum_driver"], targets["cuda"]["nvrtc"]) == ("580", "13.0.88")


def test_what_needs_a_gpu_says_that_it_was_not_run_and_where_it_can_be(bundle: Path) -> None:
    for report, verb in (("verify_cuda/report.json", "verify"), ("bench_cuda/summary.json", "bench")):
        said = json.loads((bundle / "attestations" / report).read_text())
        assert list(said) == ["not_run"]
        assert f"no NVIDIA GPU and no driver; on a machine that has one: python -m runtime {verb}" in said["not_run"]


def test_the_reference_and_the_gates_travel_for_the_machine_that_has_one(bundle: Path) -> None:
    assert (bundle / "attestations/verify/reference.safetensors").is_file()
    report = json.loads((bundle / "attestations/verify/report.json").read_text())
    assert report["engine"]["not_run"] == "this bundle has no engine for the CPU"
    assert report["engine"]["gates"]["max_mean_kl"] > 0
    assert report["conversion"]["mean_kl_nats"] < 1e-3


def test_commands_on_the_bundle_say_one_line_and_run_nothing_else(bundle: Path) -> None:
    for name in ("verify", "bench", "tune"):
        done = runtime_command(name, bundle)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "the cuda engine cannot run here" in done.stderr
    assert "no engine for target 'cpu', only for cuda" in runtime_command("verify", bundle, "--target", "cpu").stderr
    text = runtime_command("inspect", bundle).stdout
    assert "kernels for sm_80 (never run); NVRTC 13.0.88, driver 580 or newer" in text
    assert "cuda: NOT VERIFIED: no NVIDIA GPU and no driver" in text


def test_kernels_are_measured_where_there_is_a_gpu_or_nothing_is_built(tmp_path: Path) -> None:
    done = command(tmp_path, "compile.tune=true", "target=[cuda]", "tracking=off", real=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "compile.tune is True, and kernels cannot be measured here: no NVIDIA GPU and no driver; leave it" in line
    assert not (tmp_path / "cache").exists()
