"""Building for NVIDIA GPUs without one: what the stage writes, how it is kept, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.stage import Artifact, StageOutput
from pipelines.stages import compile_cuda
from pipelines.target_config import CudaTargetConfig
from plugins.cuda import nvrtc
from plugins.cuda.archs import ARCHS
from runtime.errors import EnginewrightError
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.kernel_list import KernelList
from runtime.kernels import kernels_for
from runtime.spec import ModelSpec
from tests.pipelines.running_stages import fetch_and_convert, stage_context
from tests.pipelines.tiny_models import make_hf_folder

HEAD_DIM_64 = {"hidden": 128, "heads": 2, "kv_heads": 1, "num_layers": 1}
ONE_ARCH = CudaTargetConfig(archs=("sm_80",))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return fetch_and_convert(make_hf_folder(folder / "tiny", **HEAD_DIM_64), folder, "float16")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


def compiled(checkpoint: Path, folder: Path, out: str, config: CudaTargetConfig = ONE_ARCH) -> StageOutput:
    """Run the stage; `folder` holds the cubins that are kept between runs."""
    shutil.rmtree(folder / out, ignore_errors=True)
    (folder / out).mkdir()
    return compile_cuda.STAGE.run(config, {"convert": Artifact(checkpoint, "")}, folder / out, stage_context(folder))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_engine_has_an_image_of_each_kernel_and_says_what_runs_it(checkpoint: Path, kept: Path) -> None:
    output = compiled(checkpoint, kept, "first")
    files = files_of(kept / "first")
    images = {name for name in files if name.startswith("kernels/")}
    listed = json.loads(files["kernels.json"])
    assert images == {f"kernels/{name}" for name in listed["images"]}
    assert "kernels/sm_80/attention-float16-64.cubin" in images
    assert all(files[name].startswith(b"\x7fELF") for name in images)
    assert KernelList.read(kept / "first") == KernelList(nvrtc.NVRTC_VERSION, "580", ("sm_80",), ("sm_80",))
    plan = EnginePlan.read(kept / "first")
    assert (plan.target, plan.dtype, plan.max_batch_size, plan.num_blocks) == ("cuda", "float16", 64, 0)
    assert plan.kv_cache_fraction == 0.9
    assert plan.max_seq_len == 256
    assert output.metrics["kernel_images_compiled"] == len(images)
    assert output.metrics["registers_attention"] > 32


def test_what_was_compiled_before_is_taken_again_and_the_bytes_are_the_same(checkpoint: Path, kept: Path) -> None:
    compiled(checkpoint, kept, "first")
    again = compiled(checkpoint, kept, "again")
    assert again.metrics["kernel_images_compiled"] == 0
    shutil.rmtree(kept / "kept/cubins")
    anew = compiled(checkpoint, kept, "anew")
    assert anew.metrics["kernel_images_compiled"] == anew.metrics["kernel_images"]
    assert files_of(kept / "first") == files_of(kept / "again") == files_of(kept / "anew")


def test_a_damaged_kept_image_is_compiled_again(checkpoint: Path, kept: Path) -> None:
    compiled(checkpoint, kept, "first")
    damaged = next((kept / "kept/cubins").glob("*.image"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert compiled(checkpoint, kept, "again").metrics["kernel_images_compiled"] == 1
    assert files_of(kept / "first") == files_of(kept / "again")


def test_limits_that_the_model_cannot_keep_are_refused(checkpoint: Path, kept: Path) -> None:
    with pytest.raises(EnginewrightError, match=r"target\.cuda\.max_seq_len is 512; .* at most 256 tokens"):
        compiled(checkpoint, kept, "wrong", CudaTargetConfig(archs=("sm_80",), max_seq_len=512))


def test_another_compiler_than_the_pinned_one_is_refused(
    checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: "13.2")
    with pytest.raises(EnginewrightError, match=r"NVRTC 13\.2 is loaded.*pip install nvidia-cuda-nvrtc==13\.0\.88"):
        compiled(checkpoint, kept, "wrong")


def spec(head_dim: int) -> ModelSpec:
    return ModelSpec("Tiny", 384, 4 * head_dim, 2, 4, 2, head_dim, 256, 4096)


def test_a_head_dim_or_dtype_without_kernels_is_refused_with_the_remedy() -> None:
    with pytest.raises(EnginewrightError, match=r"head_dim 64, 96, 128, 256; this model's is 80; write target=\[cpu\]"):
        kernels_for(spec(80), "bfloat16", 32)
    with pytest.raises(EnginewrightError, match=r"dtype is float32; write precision=bf16, or target=\[cpu\]"):
        kernels_for(spec(64), "float32", 32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_every_kernel_compiles_for_every_architecture(head_dim: int, dtype: str, kept: Path) -> None:
    from plugins.cuda.build import build_images

    jobs = [
        (kernel.source, arch)
        for kernel in kernels_for(spec(head_dim), dtype, 32)
        for arch in ARCHS
        if not kernel.archs or arch in kernel.archs
    ]
    images = build_images(jobs, kept / "kept/cubins", lambda share, text: None)
    assert all(image.compiled.image for image in images)


def test_an_engine_gets_every_kernel_that_an_op_has() -> None:
    wide = replace(spec(64), hidden_size=2048, intermediate_size=8192)
    needed = {kernel.source.file for model in (spec(64), wide) for kernel in kernels_for(model, "bfloat16", 32)}
    written = {path.relative_to(compile_cuda.PLUGINS).as_posix() for path in compile_cuda.PLUGINS.rglob("*.cu")}
    assert needed == {file for file in written if not file.endswith("_tensorrt.cu")}  # those are in TensorRT's plans


def test_a_model_that_drafts_gets_the_kernels_of_its_head_dim_and_no_whole_step() -> None:
    alone, drafted = kernels_for(spec(128), "bfloat16", 32), kernels_for(spec(128), "bfloat16", 32, spec(64))
    added = [kernel.source.id for kernel in drafted if kernel not in alone]
    assert added == ["attention-bfloat16-64", "attention_prefill-bfloat16-64"]
