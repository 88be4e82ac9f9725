"""Builds in processes that cost no start: a server that has imported everything forks one for each build.

`python -m tests.pipelines.fork_server` reads a JSON line for each build from stdin: arguments, environment, log file,
and optionally when to kill it. A forked process is a fresh one in all that matters here: it has its own pid, opens its
own files and dies by SIGKILL like any other. `ForkServer` is the side of the tests.
"""

import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
# Calls between which publication moves from one state on disk to the next.
STEPS = ("fsync", "rename", "replace", "rmdir", "symlink")


@dataclass(frozen=True)
class Job:
    """One run of the command line.

    kill_after_s: SIGKILL after so long. kill_at_step: SIGKILL before that call of STEPS, counted from 0.
    toys: build with the toy stages. max_file_bytes: no file may grow beyond.
    """

    arguments: list[str]
    environment: Mapping[str, str]
    log: str
    kill_after_s: float | None = None
    kill_at_step: int | None = None
    toys: bool = False
    max_file_bytes: int = 0


@dataclass(frozen=True)
class Ended:
    """How a build ended: exit code (negative: the signal), its time, what it said, and calls of STEPS it made."""

    code: int
    seconds: float
    stderr: str
    steps: int


class ForkServer:
    """A context: the server lives as long as it."""

    def __init__(self, prefix: tuple[str, ...] = ()) -> None:
        command = [*prefix, sys.executable, "-m", "tests.pipelines.fork_server"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)  # which a store opened in this process leaves behind
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
        )

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)

    def run(self, *jobs: Job) -> list[Ended]:
        """Run jobs at the same time and wait for all of them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
        self.process.stdin.flush()
        answers = json.loads(self.process.stdout.readline())
        return [
            Ended(code, seconds, Path(job.log).read_text(), steps_of(job))
            for (code, seconds), job in zip(answers, jobs, strict=True)
        ]


def steps_of(job: Job) -> int:
    """Calls of STEPS; 0 where a kill came before or while they were written down."""
    path = Path(job.log + ".steps")
    return int(path.read_text() or 0) if path.exists() else 0


def serve() -> None:
    """Fork and wait for the jobs of each line until stdin ends."""
    warm_up()
    for line in sys.stdin:
        jobs = [Job(**fields) for fields in json.loads(line)]
        pids = {fork(job): job for job in jobs}
        print(json.dumps(wait(pids)), flush=True)


# What a build imports on its way, costs time, and starts no thread and opens no file.
MODULES = (
    "matplotlib.pyplot",
    "mlflow.entities",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracing",
    "mlflow.tracking",
    "pipelines.benchmark.plots",
    "pipelines.cli",
    "pipelines.quality.conversion",
    "pipelines.quality.reference",
    "pipelines.sbom",
    "runtime.loading",
    "runtime.verification",
    "transformers",
)


def warm_up() -> None:
    """Import what a build imports; run nothing, so that no thread and no connection crosses a fork."""
    for name in MODULES:
        importlib.import_module(name)
    import sqlalchemy.orm
    import torch
    import transformers

    torch.set_num_threads(1)
    sqlalchemy.orm.configure_mappers()
    for name in ("LlamaForCausalLM", "PreTrainedTokenizerFast", "AutoModelForCausalLM", "AutoConfig"):
        getattr(transformers, name)  # they load on first use


def fork(job: Job) -> int:
    """Start one build; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = build(job)
    finally:
        sys.stderr.flush()
        os._exit(code)


def build(job: Job) -> int:
    """The command line in this process; its exit code."""
    import functools

    import pipelines.build
    import pipelines.cli

    os.environ.update(job.environment)
    if job.max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.max_file_bytes, job.max_file_bytes))
    sys.argv = ["enginewright", *job.arguments]
    if job.toys:
        toys = functools.partial(pipelines.build.run_build, stages="tests.pipelines.toy_engine")
        pipelines.cli.run_build = toys  # type: ignore[assignment]
    count_steps(job)
    try:
        pipelines.cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def count_steps(job: Job) -> None:
    """Count the calls that change names on disk, and die before the one that was asked for."""
    made = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            if made == job.kill_at_step:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1
            steps.write_text(str(made))
            return call(*args, **kwargs)

        return wrapper

    steps = Path(job.log + ".steps")
    steps.unlink(missing_ok=True)
    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def wait(jobs: dict[int, Job]) -> list[tuple[int, float]]:
    """Wait for every build, killing those whose time has come; (exit code, seconds) of each, in order."""
    started, ended = time.monotonic(), {}
    descriptors = {os.pidfd_open(pid): pid for pid in jobs}
    while descriptors:
        now = time.monotonic() - started
        for pid, job in jobs.items():
            if pid not in ended and job.kill_after_s is not None and now >= job.kill_after_s:
                os.kill(pid, signal.SIGKILL)
        limits = [job.kill_after_s - now for pid, job in jobs.items() if pid not in ended and job.kill_after_s]
        limit = max(0.0, min(limits)) if limits else 60.0
        for descriptor in select.select(list(descriptors), [], [], limit)[0]:
            pid = descriptors.pop(descriptor)
            os.close(descriptor)
            _, status = os.waitpid(pid, 0)
            ended[pid] = (os.waitstatus_to_exitcode(status), time.monotonic() - started)
    return [ended[pid] for pid in jobs]


if __name__ == "__main__":
    serve()
