"""Compile for TensorRT: the step's graph, with our plugins or native layers, and the plan for this machine's GPU."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import StageContext
from pipelines.target_config import TensorrtTargetConfig
from pipelines.tensorrt.job import PlanJob
from pipelines.tensorrt.stage import CompilePlanStage, PlanOptions
from runtime.errors import EnginewrightError
from runtime.tensorrt_library import library_version

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
        """Raises EnginewrightError where there is no GPU: the library measures on the one that it builds for."""
        from runtime.machine import look

        gpus = look().gpus
        if not gpus:
            raise EnginewrightError(
                "target tensorrt builds on the GPU that runs the plan, and here is none; build there, or write "
                "target=[tensorrt_rtx], whose plans need none"
            )
        arch = "sm_{}{}".format(*gpus[0].compute_capability)
        job = PlanJob(
            library=self.library,
            profiles=(),
            strip=config.weights == "stripped",
            plugins=config.attention == "plugin",
            workspace_bytes=config.workspace_mib * MIB,
            version_compatible=config.version_compatible,
            hardware="" if config.hardware == "this" else config.hardware,
            timing_cache=_timing_cache(context.kept_dir, arch) if config.timing_cache else "",
        )
        return PlanOptions(job, (arch,), config.attention)


def _timing_cache(kept_dir: Path, arch: str) -> str:
    """Measurements of one library on one kind of GPU, which builds share."""
    folder = kept_dir / "timing"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"tensorrt-{library_version('tensorrt')}-{arch}.cache")


STAGE = CompileTensorrtStage()
