"""Plans of TensorRT-RTX built without a GPU: what the stage writes, that it is the same each time, what it refuses."""

import errno
import json
import shutil
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from pipelines.config import BuildConfig, PrecisionConfig
from pipelines.onnx.graph import GraphOptions, write_step_model
from pipelines.stage import Artifact, StageOutput
from pipelines.stages import compile_tensorrt_rtx
from pipelines.target_config import TargetConfig, TensorrtRtxTargetConfig
from pipelines.tensorrt import building
from pipelines.tensorrt.building import build_plan
from pipelines.tensorrt.events import Phases
from pipelines.tensorrt.job import PlanJob
from pipelines.tensorrt.profiles import step_profiles
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.tensorrt_plan import Profile, Range, TensorrtPlan
from runtime.loading import load_backend
from runtime.targets import installed
from tests.pipelines.running_stages import fetch_and_convert, stage_context
from tests.pipelines.tiny_models import make_hf_folder
from tests.pipelines.unified_models import FAMILIES, SIZES, tiny_model, write_checkpoint

needs_library = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the extra tensorrt-rtx")
SMALL = TensorrtRtxTargetConfig(max_batch_size=2, max_seq_len=128, max_num_tokens=96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return fetch_and_convert(make_hf_folder(folder / "tiny"), folder, "bfloat16")


def compiled(checkpoint: Path, folder: Path, config: TensorrtRtxTargetConfig = SMALL) -> StageOutput:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    inputs = {"convert": Artifact(checkpoint, "")}
    return compile_tensorrt_rtx.STAGE.run(config, inputs, folder / "out", stage_context(folder))


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageOutput]:
    folder = tmp_path_factory.mktemp("built")
    return folder / "out", compiled(checkpoint, folder)


@needs_library
def test_the_engine_is_a_plan_with_native_attention_over_a_cache_in_place(built: tuple[Path, StageOutput]) -> None:
    folder, output = built
    assert {path.name for path in folder.iterdir()} == {
        "engine.json", "plan.json", "model.onnx", "model.plan", "layers.json"
    }  # fmt: skip
    kinds = Counter(layer["type"] for layer in json.loads((folder / "layers.json").read_text()))
    assert (kinds["KV_CACHE_UPDATE"], kinds["ATTENTION_INPUT"], kinds["ROTARY_EMBEDDING"]) == (4, 2, 4)
    assert output.metrics["layers_kv_cache_update"] == 4
    assert output.metrics["plan_bytes"] == (folder / "model.plan").stat().st_size > 1000
    assert 0 < output.metrics["build_peak_anonymous_bytes"] < output.metrics["build_peak_bytes"]


@needs_library
def test_the_engine_says_what_runs_it(built: tuple[Path, StageOutput], checkpoint: Path) -> None:
    folder, _ = built
    plan, described = EnginePlan.read(folder), TensorrtPlan.read(folder)
    # A cache row for each token, and for the nodes of a tree that begins at the last.
    assert (plan.target, plan.dtype, plan.max_seq_len, plan.block_size) == ("tensorrt_rtx", "bfloat16", 128, 192)
    assert described.cache_len == 192
    assert described.version == installed("tensorrt-rtx")
    assert described.profiles == (
        Profile("decode", Range(1, 1, 2), Range(1, 1, 64), Range(1, 1, 128)),
        Profile("prefill", Range(1, 1, 1), Range(1, 96, 96), Range(1, 1, 96)),
    )
    compatibility = described.compatibility()
    assert compatibility["archs"] == compatibility["never_run"] == ["sm_80", "sm_86", "sm_89", "sm_120"]
    assert compatibility["requires"]["tensorrt-rtx"] == f"=={described.version}"
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {function.name for function in graph.functions} == {"rope_kv_write", "attention"}


@needs_library
def test_the_same_inputs_give_the_same_engine_but_for_numbers_in_the_plan(
    built: tuple[Path, StageOutput], checkpoint: Path, tmp_path: Path
) -> None:
    """The library's plans differ in a few numbers from build to build, which nothing that we can set changes."""
    compiled(checkpoint, tmp_path)
    one, other = built[0], tmp_path / "out"
    names = {path.name for path in one.iterdir()} - {"model.plan"}
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
    assert (one / "model.plan").stat().st_size == (other / "model.plan").stat().st_size


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "head_dim", 16)  # the smallest that has a fused kernel
    (tmp_path / "graph").mkdir()
    checkpoint = write_checkpoint(tmp_path / "graph", tiny_model(family), family)
    write_step_model(checkpoint, GraphOptions("float16", 192), tmp_path / "graph")
    job = PlanJob("tensorrt_rtx", step_profiles(2, 64)[:1], archs=("sm_89",))
    built = build_plan(job, tmp_path / "graph", stage_context(tmp_path))
    assert built.plan_bytes == (tmp_path / "graph/model.plan").stat().st_size


@needs_library
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 65), (3, 64)])
def test_the_smallest_limits_build(batch: int, tokens: int, checkpoint: Path, tmp_path: Path) -> None:
    output = compiled(checkpoint, tmp_path, replace(SMALL, max_batch_size=batch, max_num_tokens=tokens))
    assert output.metrics["plan_bytes"] > 0
    profiles = TensorrtPlan.read(tmp_path / "out").profiles
    assert any(profile.takes(batch, 64) for profile in profiles)
    assert any(profile.takes(1, tokens) for profile in profiles)


@needs_library
def test_a_head_dim_without_a_fused_kernel_is_named(tmp_path: Path) -> None:
    checkpoint = fetch_and_convert(make_hf_folder(tmp_path / "tiny", hidden=32, heads=4), tmp_path, "bfloat16")
    with pytest.raises(EnginewrightError, match=r"no fused attention kernel for bfloat16 .* head_dim, 8;"):
        compiled(checkpoint, tmp_path / "plan")


@needs_library
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_loading_it_without_a_gpu_gives_the_library_s_own_reason(
    built: tuple[Path, StageOutput], checkpoint: Path
) -> None:
    with pytest.raises(EnginewrightError, match=r"does not load the plan.* CUDA .*build it again with: make engine"):
        load_backend(Checkpoint(checkpoint), built[0])


@needs_library
@pytest.mark.skipif(torch.cuda.is_available(), reason="1.7 needs a driver to leave weights out, and here is one")
def test_a_plan_without_weights_needs_a_driver_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EnginewrightError, match=r"cannot build the plan: .*write target\.tensorrt_rtx\.weights=inside"):
        compiled(checkpoint, tmp_path, replace(SMALL, weights="stripped"))


def build(checkpoint: Path, folder: Path, **changes: Any) -> None:
    (folder / "weights.safetensors").symlink_to(checkpoint / "weights.safetensors")
    if not (folder / "model.onnx").exists():
        write_step_model(Checkpoint(checkpoint), GraphOptions("bfloat16", 192), folder)
    build_plan(replace(PlanJob("tensorrt_rtx", step_profiles(2, 64)), **changes), folder, stage_context(folder))


@needs_library
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_disk_that_fills_up_while_the_plan_is_written_is_an_error_of_the_disk(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        build(checkpoint, tmp_path, plan="/dev/full")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")


@needs_library
def test_a_profile_that_does_not_fit_the_cache_is_the_library_s_error(checkpoint: Path, tmp_path: Path) -> None:
    wide = (Profile("wide", Range(1, 1, 1), Range(1, 300, 300), Range(1, 1, 1)),)
    with pytest.raises(EnginewrightError, match=r"cannot build the plan: .*kOPT values for profile 0"):
        build(checkpoint, tmp_path, profiles=wide)


@needs_library
def test_what_is_no_graph_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EnginewrightError, match=r"tensorrt_rtx .* does not take the graph: "):
        build(checkpoint, tmp_path)


def test_a_process_that_is_killed_is_told_with_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "worker", SimpleNamespace(__name__="tests.pipelines.dying_worker"))
    with pytest.raises(EnginewrightError, match="tensorrt_rtx ended with status -9 while it built the plan"):
        build_plan(PlanJob("tensorrt_rtx", ()), tmp_path, stage_context(tmp_path))


@needs_library
def test_limits_that_the_model_cannot_keep_are_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EnginewrightError, match=r"target\.tensorrt_rtx\.max_seq_len is 100000; .* at most 256 tokens"):
        compiled(checkpoint, tmp_path, replace(SMALL, max_seq_len=100000))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archs": ("sm_90",)}, r"target\.tensorrt_rtx\.archs is \['sm_90'\]; it must be some of sm_75, sm_80"),
        ({"archs": ()}, r"target\.tensorrt_rtx\.archs is \[\]"),
        ({"weights": "outside"}, r"target\.tensorrt_rtx\.weights is 'outside'; it must be inside or stripped"),
        ({"max_num_tokens": 8}, r"max_num_tokens is 8; it must be at least target\.tensorrt_rtx\.max_batch_size, 16"),
    ],
)
def test_settings_out_of_their_bounds_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(EnginewrightError, match=message):
        TensorrtRtxTargetConfig(**changes)


def test_float32_is_refused_by_name() -> None:
    with pytest.raises(EnginewrightError, match=r"precision\.dtype is 'float32'; it must be bfloat16 or float16 with"):
        BuildConfig(precision=PrecisionConfig("fp32", "float32"), target=TargetConfig(tensorrt_rtx=SMALL))


def test_progress_is_the_share_of_phases_within_phases() -> None:
    phases = Phases()
    phases.start("build", 4)
    phases.complete("build", 0)
    phases.start("compile", 2)
    phases.complete("compile", 0)
    assert phases.share() == 1 / 4 + 1 / 4 * 1 / 2
    phases.finish("compile")
    phases.complete("build", 3)
    assert phases.share() == 1.0
