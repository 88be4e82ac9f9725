"""Whether a CUDA engine runs on a machine: its GPU, driver and torch; which engine of a bundle is taken."""

import json
import shlex
from dataclasses import replace

import pytest
import torch

from plugins.cuda import driver as driver_module
from plugins.cuda.errors import KernelError
from runtime import cuda_engine, targets
from runtime import llm as llm_module
from runtime.cli import main
from runtime.errors import EnginewrightError
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.kernel_list import KernelList
from runtime.formats.manifest import write_manifest
from runtime.machine import Gpu
from runtime.readiness import as_text, check_bundle
from runtime.targets import choose_target
from tests.runtime.test_readiness import HOST, NEEDS, failures, settings_of
from tests.runtime.tiny import PLAN, make_checkpoint, make_tokenizer

ARCHS = ["compute_80", "sm_80", "sm_90a"]
CUDA_NEEDS = {
    "arch": "nvidia", "archs": ARCHS, "never_run": ["sm_80"], "minimum_driver": "580", "nvrtc": "13.0.88",
    "dtype": "bfloat16", "limits": {"max_seq_len": PLAN.max_seq_len}, "topology": {"tensor_parallel": 1},
    "requires": {"torch": ">=2.11"},
}  # fmt: skip
CUDA_PLAN = EnginePlan(
    target="cuda", dtype="bfloat16", linear="torch", max_batch_size=8, max_seq_len=PLAN.max_seq_len, max_num_tokens=64,
    block_size=16, num_blocks=0, kv_cache_fraction=0.8,
)  # fmt: skip
KERNELS = {"schema": 1, "nvrtc": "13.0.88", "minimum_driver": "580", "archs": ARCHS, "never_run": ["sm_80"]}
H100 = replace(HOST, gpus=(Gpu("H100", 80 * 2**30, (9, 0)),), driver="580.65.06")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with an engine for the CPU and one, without its kernels, for NVIDIA GPUs."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    checkpoint = make_checkpoint(folder, dtype="bfloat16")
    make_tokenizer(folder / "tokenizer")
    for plan in (replace(PLAN, dtype="bfloat16"), CUDA_PLAN):
        (folder / "engines" / plan.target).mkdir(parents=True)
        plan.write(folder / "engines" / plan.target)
    (folder / "engines/cuda/kernels.json").write_text(json.dumps(KERNELS))
    spec = json.loads((checkpoint.path / "config.json").read_text())
    source = {"uri": "tiny.gguf", "revision": "sha256:12ab"}
    write_manifest(folder, {"name": "tiny", "spec": spec}, {"cpu": NEEDS, "cuda": CUDA_NEEDS}, {"source": source})
    return folder


@pytest.fixture
def with_cuda(monkeypatch):
    """A torch that reaches a GPU, as far as the checks ask."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def gpu_of(capability, driver="580.1"):
    return replace(HOST, gpus=(Gpu("a GPU", 80 * 2**30, capability),), driver=driver)


@pytest.mark.parametrize(
    ("capability", "level", "text"),
    [
        ((9, 0), "ok", "takes sm_90a"),
        ((8, 6), "note", "takes sm_80, which was built and never run before"),
        ((12, 0), "note", "the driver compiles the engine's PTX at its first load"),
        ((7, 5), "fails", "a GPU, sm_75; kernels for compute_80, sm_80, sm_90a"),
    ],
)
def test_a_gpu_is_told_which_kernels_it_takes(bundle, with_cuda, capability, level, text):
    readiness = check_bundle(bundle, "cuda", gpu_of(capability))
    finding = next(finding for finding in readiness.findings if finding.check == "GPU")
    assert (finding.level, text in finding.text) == (level, True)
    assert readiness.runs == (level != "fails")


def test_a_wrong_architecture_ends_with_the_command_that_builds_both_targets_again(bundle, with_cuda):
    readiness = check_bundle(bundle, "cuda", gpu_of((7, 5)))
    assert as_text(readiness).endswith(readiness.rebuild)
    settings = settings_of(readiness.rebuild)
    assert settings["TARGET"] == "cpu,cuda"
    assert settings["target.cuda.kv_cache_fraction"] == "0.8"
    assert settings["target.cuda.archs"] == "[compute_80,sm_80,sm_90a]"
    assert settings["target.cpu.linear"] == PLAN.linear


def test_what_building_again_does_not_mend_ends_without_that_command(bundle, with_cuda, monkeypatch):
    assert "an NVIDIA GPU is needed" in failures(check_bundle(bundle, "cuda", HOST))["GPU"]
    old = check_bundle(bundle, "cuda", gpu_of((9, 0), "575.51.03"))
    assert failures(old) == {"driver": "driver 575.51.03 is installed; needed is 580 or newer"}
    monkeypatch.setattr(torch.version, "cuda", None)
    without = check_bundle(bundle, "cuda", H100)
    assert "built without CUDA" in failures(without)["torch's CUDA"]
    assert not any("make engine" in as_text(readiness) for readiness in (old, without))


def test_a_gpu_too_small_for_one_request_is_told_and_gets_a_shorter_one(bundle, with_cuda):
    small = replace(H100, gpus=(Gpu("small", 1000, (9, 0)),))
    assert "GiB on the GPU" in failures(check_bundle(bundle, "cuda", small))["memory"]


def test_the_engine_is_the_one_asked_for_else_cuda_where_it_runs_else_cpu(monkeypatch):
    monkeypatch.setattr(targets, "installed", lambda name: "2.11.0+cu130")
    both = {"cpu": NEEDS, "cuda": CUDA_NEEDS}
    assert choose_target(both, None, H100) == ("cuda", "on H100")
    assert choose_target(both, None, HOST) == ("cpu", "cuda: no NVIDIA GPU and no driver")
    assert choose_target(both, None, gpu_of((7, 5)))[0] == "cpu"
    assert choose_target(both, None, gpu_of((9, 0), "550.1")) == (
        "cpu", "cuda: driver 550.1 is installed; needed is 580 or newer"
    )  # fmt: skip
    ampere = {"cpu": NEEDS, "cuda": {**CUDA_NEEDS, "archs": ["sm_80"]}}
    assert choose_target(ampere, None, H100) == ("cpu", "cuda: H100 is sm_90, and the engine has kernels for sm_80")
    assert choose_target(both, "cpu", H100)[0] == "cpu"
    assert choose_target({"cuda": CUDA_NEEDS}, None, HOST)[0] == "cuda"
    monkeypatch.setattr(targets, "installed", lambda name: "2.13.0+cpu")
    assert choose_target(both, None, H100) == ("cpu", "cuda: torch 2.13.0+cpu was built without CUDA")


def test_an_llm_without_a_target_takes_the_engine_that_a_command_takes(bundle, monkeypatch):
    taken = []

    def load(checkpoint, engine_dir, *rest, bundle, **options):
        assert bundle == engine_dir.parents[1]
        taken.append(engine_dir.name)

    monkeypatch.setattr(llm_module, "load_engine", load)
    for machine, asked, wanted in (
        (H100, None, "cuda"),
        (HOST, None, "cpu"),
        (H100, "cpu", "cpu"),
        (HOST, "cuda", "cuda"),
    ):
        monkeypatch.setattr("runtime.machine.look", lambda machine=machine: machine)
        monkeypatch.setattr(targets, "installed", lambda name: "2.11.0+cu130")
        llm_module.load_bundle(bundle, asked)
        assert taken.pop() == wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_a_command_says_once_which_engine_it_takes_and_an_engine_asked_for_is_never_replaced(bundle, capsys):
    main(["generate", str(bundle), "--prompt", "a", "--max-tokens", "2"])
    assert capsys.readouterr().err.splitlines()[0] == "engine: cpu (cuda: no NVIDIA GPU and no driver)"
    with pytest.raises(SystemExit, match=r"the cuda engine cannot run here: .*; or run it with --target cpu"):
        main(["generate", str(bundle), "--target", "cuda", "--prompt", "a"])
    main(["generate", str(bundle), "--target", "cpu", "--prompt", "a", "--max-tokens", "2"])
    assert "engine:" not in capsys.readouterr().err


def test_a_load_on_another_architecture_is_refused_before_any_weight_is_read(with_cuda, monkeypatch):
    monkeypatch.setattr(cuda_engine, "driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T4")
    kernels = KernelList("13.0.88", "580", ("sm_90a",), ())
    with pytest.raises(EnginewrightError, match=r"T4 is sm_75; this engine has kernels for sm_90a; build it again"):
        cuda_engine.require_gpu(kernels)


def test_a_driver_that_is_too_old_is_an_error_that_names_the_one_that_is_needed(monkeypatch):
    bindings = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(bindings, "cuInit", lambda flags: (0,))
    monkeypatch.setattr(bindings, "cuDriverGetVersion", lambda: (0, 12080))
    driver_module.driver.cache_clear()
    try:
        with pytest.raises(KernelError, match=r"the driver is of CUDA 12\.8; .*: update to 580 or newer"):
            driver_module.driver()
    finally:
        driver_module.driver.cache_clear()


def test_the_cache_takes_its_share_of_what_is_free_and_one_request_must_fit(tmp_path):
    spec = make_checkpoint(tmp_path).spec
    block = CUDA_PLAN.block_bytes(spec)
    longest = -(-CUDA_PLAN.max_seq_len // CUDA_PLAN.block_size)
    assert cuda_engine.sized(CUDA_PLAN, spec, None, 100 * block).num_blocks == 79  # of 80, one is padding's
    assert cuda_engine.sized(CUDA_PLAN.with_blocks(3), spec, None, 0).num_blocks == 3
    with pytest.raises(EnginewrightError, match=r"one request of max_seq_len .* lower target\.cuda\.max_seq_len"):
        cuda_engine.sized(CUDA_PLAN, spec, None, longest * block)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 9}', "[1]"])
def test_a_damaged_list_of_kernels_is_an_error(tmp_path, text):
    (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(EnginewrightError, match=r"kernels\.json: unreadable .*build the bundle again"):
        KernelList.read(tmp_path)


def test_the_rebuild_command_can_be_split_by_a_shell(bundle):
    assert shlex.split(check_bundle(bundle, "cuda", HOST).rebuild)[:2] == ["make", "engine"]
