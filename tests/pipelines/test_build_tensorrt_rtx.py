"""An engine for RTX GPUs beside the CPU's, built where there is no GPU: what the bundle has, and what it says of it."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipelines.deploy.files import write_deploy_files
from pipelines.deploy.options import DeployOptions
from runtime.formats.bundle import open_bundle
from tests.pipelines.test_cli import REPOSITORY, command
from tests.pipelines.tiny_models import make_hf_folder

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says"),
    pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the extra tensorrt-rtx"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    model = make_hf_folder(root / "tiny", max_len=1024, num_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        done = command(root, f"model={model}", "experiment=smoke", "target=[tensorrt_rtx]", "tracking=off",
                       "target.tensorrt_rtx.archs=[sm_89,sm_121]", real=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("NOT RUN: no NVIDIA GPU and no driver") == 2
    return (root / "bundles/latest").resolve()


def runtime_command(name: str, bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "runtime", name, str(bundle), *arguments], capture_output=True,
                          text=True, cwd=REPOSITORY, timeout=60)  # fmt: skip


def test_the_manifest_says_what_runs_the_plan(bundle: Path) -> None:
    ((target, needs),) = open_bundle(bundle).manifest["targets"].items()
    assert (target, needs["arch"], needs["dtype"]) == ("tensorrt_rtx", "nvidia", "bfloat16")
    assert needs["archs"] == needs["never_run"] == ["sm_89", "sm_121"]
    assert (needs["minimum_driver"], needs["attention"], needs["weights"]) == ("580", "native", "inside")
    assert needs["requires"]["tensorrt-rtx"].startswith("==1.")


def test_what_needs_a_gpu_says_that_it_was_not_run_and_where_it_can_be(bundle: Path) -> None:
    for report, verb in (("verify", "report.json"), ("bench", "summary.json")):
        said = json.loads((bundle / f"attestations/{report}_tensorrt_rtx" / verb).read_text())
        assert list(said) == ["not_run"]
        assert f"python -m runtime {report} BUNDLE --target tensorrt_rtx" in said["not_run"]


def test_verify_gives_the_library_s_reason_and_the_command_that_builds_the_same_again(bundle: Path) -> None:
    done = runtime_command("verify", bundle)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "does not load the plan, which is for sm_89, sm_121: " in done.stderr
    assert "CUDA driver version is insufficient" in done.stderr
    assert "TARGET=tensorrt_rtx" in done.stderr
    assert "target.tensorrt_rtx.archs=[sm_89,sm_121]" in done.stderr
    assert "target.tensorrt_rtx.weights=inside" in done.stderr


def test_inspect_and_doctor_say_what_the_plan_is_and_that_nobody_ran_it(bundle: Path) -> None:
    text = runtime_command("inspect", bundle).stdout
    assert "a plan for sm_89 (never run), sm_121 (never run), driver 580 or newer" in text
    assert "tensorrt_rtx: NOT VERIFIED: no NVIDIA GPU and no driver" in text
    done = runtime_command("doctor", bundle)
    assert done.returncode == 1
    assert "an NVIDIA GPU is needed" in done.stdout


def test_files_to_deploy_it_ask_for_a_gpu_and_the_library_of_the_plan(bundle: Path, tmp_path: Path) -> None:
    write_deploy_files(bundle, tmp_path / "out", DeployOptions(target="tensorrt_rtx"))
    version = open_bundle(bundle).manifest["targets"]["tensorrt_rtx"]["requires"]["tensorrt-rtx"]
    assert f"tensorrt-rtx{version}\n" in (tmp_path / "out/requirements.txt").read_text()
    assert "nvidia.com/gpu: '1'" in (tmp_path / "out/kubernetes.yaml").read_text()
