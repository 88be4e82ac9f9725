"""The backend over a TensorRT plan: what does not fit is refused with the library's own reason and what to do."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plugins.cuda.archs import ALL_RTX_ARCHS
from runtime.backends.base import EngineLimits
from runtime.backends.slots.backend import OnnxBackend
from runtime.backends.slots.plan_session import PlanSession
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.manifest import MANIFEST_FILE
from runtime.formats.rebuild import rebuild_command
from runtime.formats.step_graph import GRAPH_FILE
from runtime.formats.tensorrt_plan import PLAN_FILE, TensorrtPlan, weights_digest
from runtime.tensorrt_library import DISTRIBUTIONS, import_library, library_version


def make_plan_backend(checkpoint: Checkpoint, plan: EnginePlan, engine_dir: Path) -> OnnxBackend:
    """Load a plan on torch's current GPU.

    Raises:
        EnginewrightError: the library is missing or another version, the plan is of other weights or not for this GPU.
    """
    described = TensorrtPlan.read(engine_dir)
    advice = _advice(checkpoint.path, described)
    _check(described, checkpoint.path, advice)
    library = import_library(described.library)
    logger = make_logger(library)
    engine = _deserialize(library, logger, engine_dir / PLAN_FILE, described, advice)
    if described.weights == "stripped":
        _refit(library, logger, engine, engine_dir / GRAPH_FILE, checkpoint.path, advice)
    if not torch.cuda.is_available():
        raise EnginewrightError(
            f"the {plan.target} engine cannot run here: torch {torch.__version__} sees no GPU; install torch for CUDA "
            "13.0 (cu130), or run the bundle with --target cpu"
        )
    session = PlanSession(
        library, engine, described, checkpoint.spec, getattr(torch, plan.dtype),
        runtime_cache=_runtime_cache(checkpoint.path, plan.target),
    )  # fmt: skip
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    return OnnxBackend(session, limits)


def make_logger(library: Any) -> Any:
    """A logger that keeps the library's errors: what it raises or returns has no reason."""

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(text)

        @property
        def reason(self) -> str:
            """The first error."""
            return self.errors[0] if self.errors else "it does not say why"

    return Logger()


def _check(plan: TensorrtPlan, folder: Path, advice: str) -> None:
    """What can be told without a GPU."""
    installed = library_version(plan.library)
    if installed != plan.version and not plan.version_compatible:
        name = DISTRIBUTIONS[plan.library]
        raise EnginewrightError(
            f"the plan is of {name} {plan.version} and runs with that version alone; {installed} is installed: pip "
            f"install {name}=={plan.version}, or {advice}"
        )
    digest = weights_digest(folder, _manifest(folder))
    if digest != plan.weights_sha256:
        raise EnginewrightError(
            f"the plan was built from weights {plan.weights_sha256[:12]}, the bundle's are {digest[:12]}: {advice}"
        )


def _deserialize(library: Any, logger: Any, path: Path, plan: TensorrtPlan, advice: str) -> Any:
    """The engine of a plan's file, which the library reads from the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        runtime = library.Runtime(logger)
        if plan.version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EnginewrightError(
            f"{plan.library} {plan.version} does not load the plan, which is for {', '.join(plan.archs)}: "
            f"{logger.reason}; {advice}"
        )
    return engine


def _this_gpu() -> str:
    """sm_89 and the like; empty where torch reaches no GPU."""
    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _refit(library: Any, logger: Any, engine: Any, graph: Path, weights_folder: Path, advice: str) -> None:
    """Give a stripped plan the bundle's weights, which the graph's initializers point at."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for source in (graph, weights_folder / "weights.safetensors"):
            Path(folder, source.name).symlink_to(source.resolve())
        refitter = library.Refitter(engine, logger)
        parser = library.OnnxParserRefitter(refitter, logger)
        if not parser.refit_from_file(str(Path(folder, graph.name))) or not refitter.refit_cuda_engine():
            raise EnginewrightError(f"the plan does not take the bundle's weights: {logger.reason}; {advice}")


def _advice(folder: Path, plan: TensorrtPlan) -> str:
    """How to build again, from the manifest where the weights lie in a bundle."""
    manifest, target, gpu = _manifest(folder), plan.library, _this_gpu()
    changes: dict[str, str] = {}
    if target == "tensorrt_rtx" and gpu and gpu not in plan.archs:
        if gpu not in ALL_RTX_ARCHS:
            return f"TensorRT-RTX makes no plans for {gpu}, which this GPU is: run it with --target cuda or cpu"
        changes["archs"] = f"[{','.join([*plan.archs, gpu])}]"
    if manifest is None:
        settings = "".join(f" ARGS='target.{target}.{name}={value}'" for name, value in changes.items())
        command = f"make engine TARGET={target}{settings}"
    else:
        command = rebuild_command(folder, manifest, target, **changes)
    return f"build it again with: {command}; or run it with another --target"


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        return manifest
    except (OSError, ValueError):
        return None


def _runtime_cache(folder: Path, target: str) -> Path | None:
    """A file beside the bundle, whose own files are all in its manifest; None where the folder is no bundle."""
    if _manifest(folder) is None:
        return None
    bundle, (major, minor) = folder.resolve(), torch.cuda.get_device_capability()
    return bundle.with_name(f"{bundle.name}.{target}-sm_{major}{minor}.runtime-cache")
