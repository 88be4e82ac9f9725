"""Compile for TensorRT: the step's graph, with our plugins or native layers, and the plan for this machine's GPU."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import TensorrtTargetConfig
from pipelines.stage import StageContext
from pipelines.tensorrt.job import PlanJob
from pipelines.tensorrt.stage import CompilePlanStage, PlanOptions

if TYPE_CHECKING:
    from runtime.spec import ModelSpec

MIB = 2**20


class CompileTensorrtStage(CompilePlanStage[TensorrtTargetConfig]):
    name = "compile_tensorrt"
    library = "tensorrt"

    @property
    def resources(self) -> tuple[Path, ...]:
        """The plugins' kernels and every header that they may include."""
        return tuple(sorted((Path(__file__).resolve().parent.parent.parent / "plugins").rglob("*.cu*")))

    def options(self, config: TensorrtTargetConfig, spec: "ModelSpec", context: StageContext) -> PlanOptions:
        cache = context.kept_dir / "tensorrt" / "timing.cache"
        cache.parent.mkdir(parents=True, exist_ok=True)
        job = PlanJob(
            library=self.library, profiles=(),
            strip=config.weights == "stripped",
            plugins=config.attention == "plugin",
            workspace_bytes=config.workspace_mib * MIB,
            version_compatible=config.version_compatible,
            hardware="" if config.hardware == "this" else config.hardware,
            timing_cache=str(cache) if config.timing_cache else "",
        )  # fmt: skip
        return PlanOptions(job, this_gpu_archs(), config.attention)


def this_gpu_archs() -> tuple[str, ...]:
    """The GPU that TensorRT builds for: the first."""
    from runtime.machine import look

    gpus = look().gpus
    return tuple(f"sm_{major}{minor}" for major, minor in [gpu.compute_capability for gpu in gpus[:1]])


STAGE = CompileTensorrtStage()
