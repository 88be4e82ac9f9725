"""Builds the engine here, by the very script that the bundle carries for other hosts."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from pipelines.stage import StageContext
from pipelines.target_config import TensorrtLlmJob
from pipelines.tensorrt_llm.build_command import ENGINE_DIR, TIMING_CACHE
from pipelines.tensorrt_llm.scripts import BUILD_SCRIPT
from runtime.errors import EnginewrightError
from runtime.machine import look

if TYPE_CHECKING:
    from pipelines.tensorrt_llm.folders import Folder

KEPT = "tensorrt_llm"  # timing caches, below `StageContext.kept_dir`
BUILD_LOG = "build.log"


def is_built_here(job: TensorrtLlmJob) -> bool:
    """Whether the version that was asked for is this machine's; a local part, as in 1.2.1+cu13, does not count."""
    try:
        return job.target.build and Version(job.installed).public == Version(job.target.version).public
    except InvalidVersion:  # none
        return False


def build_engine(folder: "Folder", context: StageContext) -> str:
    """Put engine/, the log and the timing cache into the folder; return the GPU architecture that it is for.

    Raises:
        EnginewrightError: trtllm-build failed, or made something else than was asked for.
    """
    made = context.scratch_dir / "built"
    shutil.rmtree(made, ignore_errors=True)
    gpus = look().gpus
    arch = f"sm_{gpus[0].compute_capability[0]}{gpus[0].compute_capability[1]}" if gpus else "an unknown GPU"
    kept = context.kept_dir / KEPT / f"{folder.config.version}-{arch.replace(' ', '-')}.cache"
    context.progress.advance(0.7, text="building the engine")
    _run_script(folder.out_dir / BUILD_SCRIPT, made, kept, context)
    _check_engine(made / ENGINE_DIR, folder.config.version, folder.config.tp_size * folder.config.pp_size)
    for name in (ENGINE_DIR, BUILD_LOG, TIMING_CACHE):
        if (made / name).exists():
            shutil.move(made / name, folder.out_dir / name)
    if (folder.out_dir / TIMING_CACHE).is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        shutil.copyfile(folder.out_dir / TIMING_CACHE, partial)
        partial.replace(kept)
    shutil.rmtree(made, ignore_errors=True)
    return arch


def _run_script(script: Path, made: Path, timing_cache: Path, context: StageContext) -> None:
    """Run build.sh; its output, trtllm-build's too, goes to the stage's log."""
    environment = dict(os.environ)
    if timing_cache.is_file():
        environment["TIMING_CACHE"] = str(timing_cache)
    process = subprocess.Popen(
        ["sh", str(script), str(made)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        errors="replace",
    )  # fmt: skip
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        last = line.strip() or last
        context.log.info(last)
    if process.wait() != 0:
        raise EnginewrightError(f"target tensorrt_llm: {last.removeprefix('error: ')}; target.tensorrt_llm.build=false "
                                "leaves the engine to the script in the bundle")  # fmt: skip


def _check_engine(engine: Path, version: str, world_size: int) -> None:
    missing = [name for name in (f"rank{rank}.engine" for rank in range(world_size)) if not (engine / name).is_file()]
    if missing:
        raise EnginewrightError(f"target tensorrt_llm: trtllm-build made no {', '.join(missing)}; see the log")
    try:
        made_by = str(json.loads((engine / "config.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnginewrightError(
            f"target tensorrt_llm: the engine's config.json is none ({error!r}); see the log"
        ) from error
    if made_by.partition("+")[0] != version:
        raise EnginewrightError(f"target tensorrt_llm: the engine is of TensorRT-LLM {made_by}, not {version}")
