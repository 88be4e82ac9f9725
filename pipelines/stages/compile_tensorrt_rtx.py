"""Compile for TensorRT-RTX: the step's graph, and a plan of it that any of the chosen GPUs runs.

The library builds ahead of time and needs no GPU and no driver for it. A timing cache would need one: there is none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import StageContext
from pipelines.target_config import TensorrtRtxTargetConfig
from pipelines.tensorrt.job import PlanJob
from pipelines.tensorrt.stage import CompilePlanStage, PlanOptions

if TYPE_CHECKING:
    from runtime.spec import ModelSpec


class CompileTensorrtRtxStage(CompilePlanStage[TensorrtRtxTargetConfig]):
    name = "compile_tensorrt_rtx"
    library = "tensorrt_rtx"
    resources: tuple[Path, ...] = ()

    def options(self, config: TensorrtRtxTargetConfig, spec: "ModelSpec", context: StageContext) -> PlanOptions:
        job = PlanJob(
            library=self.library, profiles=(), archs=config.archs,
            strip=config.weights == "stripped",
        )  # fmt: skip
        return PlanOptions(job, config.archs, "native")


STAGE = CompileTensorrtRtxStage()
