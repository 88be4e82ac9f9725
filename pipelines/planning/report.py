"""A plan as a person reads it."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.planning.gpus import BATCH_SIZES
from pipelines.planning.plan import Plan
from pipelines.summary import seconds

WORDS = {"cached": "cached", "build": "build", "depends": "maybe", "stops": "stops"}


def print_plan(plan: Plan, console: Console) -> None:
    config = plan.config
    targets = ", ".join(config.target.names)
    console.print(f"Plan of {config.package.name} for {targets}; nothing is built, fetched or written", highlight=False)
    console.print(stage_table(plan))
    for line in total_lines(plan):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if plan.bounds:
        context = plan.bounds[0].context_tokens
        console.print(f"\nDecode on GPUs, tokens/s at {context} tokens of context.", highlight=False)
        console.print("The bound that memory bandwidth sets, not a promise.")
        console.print(bound_table(plan))


def stage_table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    table.add_column("cache")
    for name in ("time", "RAM", "disk"):
        table.add_column(name, justify="right")
    table.add_column("why, and where the time is from", overflow="fold")
    for name, stage in plan.stages.items():
        cost = plan.costs.get(name)
        if cost is None:
            table.add_row(name, WORDS[stage.outcome], "", "", "", stage.output.metadata.summary if stage.output else "")
            continue
        time = seconds(cost.time.seconds) if cost.time else "unknown"
        why = "; ".join(part for part in (stage.why, f"time: {cost.time.basis}" if cost.time else "") if part)
        table.add_row(name, WORDS[stage.outcome], time, size(cost.memory_bytes), size(cost.disk_bytes), escape(why))
    return table


def total_lines(plan: Plan) -> list[str]:
    time = "unknown" if plan.seconds is None else seconds(plan.seconds)
    if any(stage.outcome == "depends" for stage in plan.stages.values()):
        time += " if every stage that may be cached has to run"
    note = plan.download_note
    lines = [
        f"Download  {size(plan.download_bytes)}" + (f" ({note})" if note else ""),
        f"Time      {time}",
        f"RAM       {size(plan.memory_bytes)}, {size(plan.available_memory_bytes)} free",
        f"Disk      {size(plan.disk_bytes)}, {size(plan.free_disk_bytes)} free",
    ]
    for what, needed, free in (("RAM", plan.memory_bytes, plan.available_memory_bytes),
                               ("disk", plan.disk_bytes, plan.free_disk_bytes)):  # fmt: skip
        if needed is not None and needed > free:
            lines.append(f"WARNING   the build needs more {what} than is free")
    return [*lines, f"Note      {plan.model.note}"] if plan.model.note else lines


def bound_table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("GPU")
    for batch_size in BATCH_SIZES:
        table.add_column(f"batch {batch_size}", justify="right")
    for name in dict.fromkeys(bound.gpu for bound in plan.bounds):
        figures = [bound.tokens_per_s for bound in plan.bounds if bound.gpu == name]
        table.add_row(name, *("does not fit" if figure is None else f"{figure:,.0f}" for figure in figures))
    return table


def size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "unknown"
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
