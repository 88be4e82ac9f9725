"""Compile for NVIDIA GPUs: the kernels that the model needs for every architecture, and the engine's limits.

NVRTC needs no GPU and no driver, so nothing is run here: what was built but never run says so in kernels.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import CUBINS, Artifact, StageContext, StageOutput
from pipelines.target_config import CudaTargetConfig
from plugins.cuda.archs import RUNS_FILE
from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from plugins.cuda.build import Built
    from runtime.formats.engine_plan import EnginePlan
    from runtime.kernels import NeededKernel
    from runtime.spec import ModelSpec

PLUGINS = Path(__file__).resolve().parent.parent.parent / "plugins"


class CompileCudaStage:
    name = "compile_cuda"
    libraries = ("nvidia-cuda-nvrtc",)
    hardware_bound = False

    @property
    def resources(self) -> tuple[Path, ...]:
        """Every kernel source and header, as which an engine needs is known once it is compiled; and what was run."""
        return (*sorted(PLUGINS.rglob("*.cu*")), RUNS_FILE)

    def run(
        self, config: CudaTargetConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write engine.json, kernels.json and kernels/<arch>/.

        Raises:
            EnginewrightError: limits that the model cannot keep, a model that no kernel takes, no NVRTC or another.
        """
        from plugins.cuda.build import spills, write_images
        from runtime.formats.checkpoint import Checkpoint
        from runtime.formats.kernel_list import KERNELS_DIR, write_kernel_list
        from runtime.kernels import kernels_for

        checkpoint = Checkpoint(inputs["convert"].path)
        plan = _plan(config, checkpoint.spec, checkpoint.config.dtype)
        drafting = Checkpoint(inputs["draft_convert"].path).spec if "draft_convert" in inputs else None
        needed = kernels_for(checkpoint.spec, plan.dtype, plan.block_size, drafting)
        images = _build(needed, config.archs, context)
        write_images(images, out_dir / KERNELS_DIR)
        write_kernel_list(images, out_dir)
        plan.write(out_dir)
        spilling = spills(images)
        for line in spilling:
            context.log.warning("registers are spilled: %s", line)
        for line in _report(images):
            context.log.info("%s", line)
        return StageOutput(metrics=_metrics(images), summary=_summary(images, spilling, plan))


def _plan(config: CudaTargetConfig, spec: "ModelSpec", dtype: str) -> "EnginePlan":
    from runtime.formats.engine_plan import EnginePlan

    longest = spec.max_position_embeddings
    if config.max_seq_len > longest:
        raise EnginewrightError(
            f"target.cuda.max_seq_len is {config.max_seq_len}; the model was trained for at most {longest} tokens"
        )
    max_seq_len = config.max_seq_len or longest
    return EnginePlan(
        target="cuda",
        dtype=dtype,
        linear="torch",  # cuBLAS, for steps of many rows
        max_batch_size=config.max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=min(config.max_num_tokens, max_seq_len),  # a captured step is no longer than a text
        block_size=config.block_size,
        num_blocks=-(-config.kv_cache_tokens // config.block_size),
        kv_cache_fraction=config.kv_cache_fraction,
    )


def _build(needed: Sequence["NeededKernel"], archs: Sequence[str], context: StageContext) -> list["Built"]:
    from plugins.cuda.build import build_images
    from plugins.cuda.errors import KernelError
    from plugins.cuda.nvrtc import require_pinned_nvrtc

    jobs = [(kernel.source, arch) for kernel in needed for arch in archs if not kernel.archs or arch in kernel.archs]

    def report(share: float, text: str) -> None:
        context.progress.advance(share, text=text)

    try:
        require_pinned_nvrtc()
        return build_images(jobs, context.kept_dir / CUBINS, report)
    except KernelError as error:
        raise EnginewrightError(f"target cuda: {error}") from error


def _metrics(images: Sequence["Built"]) -> dict[str, float]:
    """Sums, and per kernel the registers of its worst architecture."""
    metrics = {
        "kernel_images": float(len(images)),
        "kernel_images_compiled": float(sum(image.seconds > 0 for image in images)),
        "kernel_bytes": float(sum(len(image.compiled.image) for image in images)),
        "compile_cpu_seconds": sum(image.seconds for image in images),
        "spill_bytes": float(sum(image.compiled.spill_bytes for image in images)),
    }
    for image in images:
        key = f"registers_{image.source.name}"
        metrics[key] = max(metrics.get(key, 0.0), float(image.compiled.registers))
    return metrics


def _summary(images: Sequence["Built"], spilling: Sequence[str], plan: "EnginePlan") -> str:
    archs = sorted({image.compiled.arch for image in images})
    kept = sum(image.seconds == 0 for image in images)
    text = f"cuda, {plan.dtype}, {len(images)} images for {len(archs)} architectures"
    text += f" ({kept} from before)" if kept else ""
    text += f", {sum(len(image.compiled.image) for image in images) / 1e6:.1f} MB, context {plan.max_seq_len}, "
    text += f"batch {plan.max_batch_size}"
    if spilling:
        text += f"; WARNING: registers spill in {'; '.join(spilling)}"
    return text


def _report(images: Sequence["Built"]) -> Iterator[str]:
    yield f"{'kernel':32} {'arch':10} {'registers':>9} {'spill bytes':>11} {'image bytes':>11} {'seconds':>7}  image"
    for image in images:
        end = f"{len(image.compiled.image):11} {image.seconds:7.1f}  {image.source.id}"
        if not image.compiled.usage:
            yield f"{'(by the driver, at load)':32} {image.compiled.arch:10} {'-':>9} {'-':>11} {end}"
        for entry, usage in sorted(image.compiled.usage.items()):
            yield f"{entry:32} {image.compiled.arch:10} {usage.registers:9} {usage.spill_bytes:11} {end}"


STAGE = CompileCudaStage()
