"""Runs one toy stage in a process of its own, to be killed or raced: `python toy_runner.py ROOT TOY_FOLDER`."""

import sys
from pathlib import Path

from rich.console import Console

from pipelines.cache import Cache
from pipelines.config import CachePolicy
from pipelines.keys import Node
from pipelines.progress import BuildProgress
from pipelines.runner import Runner, StageResult
from pipelines.tracking import NoTracker


def make_runner(root: Path, toys: Path, policy: CachePolicy = CachePolicy.on) -> Runner:
    console = Console(file=sys.stderr)
    roots = {"toy": toys / "toy"}
    return Runner(Cache(root / "cache"), root / "failed", policy, NoTracker(), BuildProgress(console), roots)


def run_slow(root: Path, toys: Path) -> StageResult:
    import toy.stages  # type: ignore[import-not-found]

    return make_runner(root, toys).run(Node("toy.slow", toy.stages.Config(value=str(root))), {})


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    run_slow(Path(sys.argv[1]), Path(sys.argv[2]))
