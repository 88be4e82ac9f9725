"""Measure which of the CUDA engine's kernels are fastest on this machine's GPU; without one there is nothing to do."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.target_config import CompileConfig
from runtime.errors import EnginewrightError
from runtime.targets import why_not_run


def require_gpu_to_tune() -> None:
    """Raise before any other stage where kernels cannot be measured.

    Raises:
        EnginewrightError: this machine does not run CUDA engines.
    """
    if reason := why_not_run("cuda"):
        raise EnginewrightError(
            f"compile.tune is True, and kernels cannot be measured here: {reason}; leave it out, and on a machine with "
            "the GPU write: python -m runtime tune BUNDLE"
        )


class TuneCudaStage:
    name = "tune_cuda"
    libraries = ("torch",)
    hardware_bound = True
    resources: tuple[Path, ...] = ()

    def run(
        self, config: CompileConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write the choices of this machine's GPU.

        Raises:
            EnginewrightError: the engine does not run here.
        """
        from runtime.cuda_engine import tune
        from runtime.formats.checkpoint import Checkpoint

        require_gpu_to_tune()
        path = tune(
            Checkpoint(inputs["convert"].path), inputs["compile_cuda"].path, out_dir,
            lambda share, text: context.progress.advance(share, text=text),
        )  # fmt: skip
        return StageOutput(summary=path.stem)


STAGE = TuneCudaStage()
