"""What a person reads after a build: a table of the stages, where the bundle is, what to type next."""

import os
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipelines.build import OPTIONAL_STAGES, Build
from pipelines.runner import StageResult


def print_summary(build: Build, console: Console) -> None:
    console.print(stage_table(build))
    console.print(f"Bundle  {shown(build.bundle)}", highlight=False, soft_wrap=True)
    console.print('Next    make generate PROMPT="..."   make chat   make ui', highlight=False, markup=False)


def stage_table(build: Build) -> Table:
    """One row a stage; a cached stage shows the time that it did not take again."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("", style="green")
    table.add_column("key figures", overflow="fold")
    for name, result in build.results.items():
        table.add_row(name, spent(result), "cached" if result.cached else "built", result.metadata.summary)
    for name in OPTIONAL_STAGES:
        if name not in build.results:
            table.add_row(name, "", "[bold red]not run[/]", f"{name}=off: the bundle says so")
    return table


def spent(result: StageResult) -> str:
    return f"({seconds(result.metadata.seconds)})" if result.cached else seconds(result.metadata.seconds)


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {value % 60:.0f} s"


def shown(path: Path) -> str:
    """Relative to the current folder where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
