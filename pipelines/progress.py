"""How far a build is, one line a stage: bars on a terminal, a plain line now and then anywhere else."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from pipelines.stage import Progress as StageProgress

PLAIN_INTERVAL_S = 5.0


@dataclass
class BarProgress:
    """A stage's bar."""

    bars: Progress
    task: TaskID

    def advance(self, done: float, total: float = 1.0, text: str = "") -> None:
        self.bars.update(self.task, completed=done, total=total, text=text)


@dataclass
class LineProgress:
    """A stage's lines where there is no terminal, as in a log of continuous integration."""

    console: Console
    stage: str
    last: float = field(default_factory=time.monotonic)

    def advance(self, done: float, total: float = 1.0, text: str = "") -> None:
        now = time.monotonic()
        if now - self.last >= PLAIN_INTERVAL_S:
            self.last = now
            self.console.print(f"{self.stage}: {done / total if total else 0:.0%} {text}".rstrip(), highlight=False)


class BuildProgress(AbstractContextManager["BuildProgress"]):
    """Everything that a build shows while it runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.fields[stage]:<8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
                       TextColumn("{task.fields[text]}"))  # fmt: skip
            self.bars = Progress(*columns, console=console)

    def __enter__(self) -> "BuildProgress":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars:
            self.bars.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[StageProgress]:
        """Show one stage from its start to its end."""
        if self.bars is None:
            self.console.print(f"{name}: started", highlight=False)
            started = time.monotonic()
            yield LineProgress(self.console, name)
            self.console.print(f"{name}: done in {time.monotonic() - started:.1f} s", highlight=False)
            return
        task = self.bars.add_task(name, total=1.0, stage=name, text="")
        yield BarProgress(self.bars, task)
        total = self.bars.tasks[self.bars.task_ids.index(task)].total
        self.bars.update(task, completed=total or 1.0, text="")
        self.bars.stop_task(task)

    def cached(self, name: str) -> None:
        """Show a stage that needed no work."""
        if self.bars is None:
            self.console.print(f"{name}: cached", highlight=False)
            return
        task = self.bars.add_task(name, total=1.0, completed=1, stage=name, text="cached")
        self.bars.stop_task(task)
