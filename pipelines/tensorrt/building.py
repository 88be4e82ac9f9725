"""Building a plan in a process of its own, and what comes back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stage import StageContext
from pipelines.tensorrt import worker
from pipelines.tensorrt.job import PlanJob
from pipelines.tensorrt.memory import WatchedMemory
from runtime.errors import EnginewrightError

# Memory is given back as soon as it is free: a plan's parts are large and short-lived.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_LEVELS = {"error": 40, "warning": 30, "info": 20}


@dataclass(frozen=True)
class BuiltPlan:
    """What is known of a plan that was written."""

    plan_bytes: int
    layers: tuple[dict[str, Any], ...]  # of the network that it was made of: name, type, outputs
    peak_bytes: int  # see WatchedMemory
    peak_anonymous_bytes: int


def build_plan(job: PlanJob, folder: Path, context: StageContext) -> BuiltPlan:
    """Build it in the folder that has the graph; the library's log goes to the stage's.

    Raises:
        EnginewrightError: the library refused the graph or a setting, or its process ended without a word.
        OSError: the plan could not be written.
    """
    path, printed = folder / "job.json", folder / "printed.txt"
    job.write(path)
    done: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None
    with printed.open("wb") as stderr, _process(path, stderr) as process, WatchedMemory(process.pid) as memory:
        assert process.stdout is not None
        for line in process.stdout:
            ((kind, fields),) = json.loads(line).items()
            if kind == "progress":
                context.progress.advance(fields["share"], text=fields["text"])
            elif kind == "log":
                context.log.log(_LEVELS[fields["level"]], "%s", fields["text"])
            elif kind == "failed":
                failed = fields
            else:
                done = fields
    for line in printed.read_text(encoding="utf-8", errors="replace").splitlines():
        context.log.warning("%s printed: %s", job.library, line)
    if failed is not None:
        if failed["errno"]:
            raise OSError(failed["errno"], os.strerror(failed["errno"]), str(folder / failed["path"]))
        raise EnginewrightError(failed["text"])
    if done is None:
        raise EnginewrightError(
            f"{job.library} ended with status {process.returncode} while it built the plan, and gave no reason; "
            "status -9 is what the system does where memory runs out"
        )
    return BuiltPlan(done["plan_bytes"], tuple(done["layers"]), memory.peak_bytes, memory.peak_anonymous_bytes)


@contextmanager
def _process(job: Path, stderr: Any) -> Iterator[subprocess.Popen[str]]:
    """The worker; it does not outlive this block."""
    command = [sys.executable, "-m", worker.__name__, job.name]
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | _ALLOCATOR | {"PYTHONPATH": path}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8", env=environment, cwd=job.parent
    )
    try:
        yield process
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
