"""What a step of the target and a draft cost on this device: measured at load, interpolated, kept in a file.

Knows no backend and no drafter: it times the functions that it is given.
"""

import hashlib
import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from runtime.speculation.tree import TreeShape

BATCH_SIZES = (1, 2, 4, 8, 16)
ROWS = (1, 4, 8, 12, 32, 64)  # tokens of each request in one step
_SCHEMA = 1
_log = logging.getLogger(__name__)
_TIMED_RUNS = 3  # after one to warm up

Size = TypeVar("Size", bound=tuple[int, ...])


@dataclass(frozen=True)
class CostTable:
    """Seconds on one device."""

    target_seconds: dict[tuple[int, int], float]  # (batch size, rows per request), every batch size with every rows
    draft_seconds: dict[tuple[int, int, int], float]  # (batch size, W, K)

    def target_step(self, batch_size: int, rows: int) -> float:
        """Seconds of a step of `batch_size` requests with `rows` tokens each, interpolated."""
        by_batch: dict[int, dict[int, float]] = {}
        for (measured_batch, measured_rows), seconds in self.target_seconds.items():
            by_batch.setdefault(measured_batch, {})[measured_rows] = seconds
        return interpolate({batch: interpolate(points, rows) for batch, points in by_batch.items()}, batch_size)

    def draft(self, batch_size: int, shape: TreeShape) -> float:
        """Seconds to draft trees of `shape`, whose (W, K) is one of those measured."""
        wanted = (shape.num_beams, shape.depth)
        points = {batch: value for (batch, *beams), value in self.draft_seconds.items() if tuple(beams) == wanted}
        return interpolate(points, batch_size)


def interpolate(points: dict[int, float], x: int) -> float:
    """Piecewise linear between points; the first value before them, the last slope (never downwards) after them,
    or in proportion where there is one point alone.
    """
    known = sorted(points)
    if x <= known[0]:
        return points[known[0]]
    if len(known) == 1:
        return points[known[0]] * x / known[0]
    right = next((place for place in known if place >= x), known[-1])
    left = known[known.index(right) - 1]
    slope = (points[right] - points[left]) / (right - left)
    return points[right] + (max(slope, 0.0) if x > right else slope) * (x - right)


def measure_costs(
    target_step: Callable[[int, int], None],
    draft: Callable[[int, TreeShape], None],
    shapes: Iterable[TreeShape],
    max_batch_size: int,
    max_num_tokens: int,
    budget_seconds: float = 4.0,
    runs_each: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    rows_each: tuple[int, ...] = ROWS,
) -> CostTable:
    """Time steps and drafts, small ones first, each the best of three after a warm-up: noise only ever adds.

    What is too large for a step, or for what is left of the time, is taken to cost in proportion to its tokens: an
    upper bound, so that speculation is not switched on by a guess.

    Args:
        target_step: runs (batch size, rows per request) to its end on the device.
        draft: runs (batch size, shape) to its end on the device; only W and K of the shape matter.
        shapes: whose W and K are to be timed.
        max_batch_size, max_num_tokens: what a step may have; at most 16 requests are timed.
        budget_seconds: of steps and drafts together, half each.
        runs_each: how often one call of `target_step` or `draft` runs its size.
        rows_each: tokens of each request in the steps that are timed.
    """
    largest = min(max_batch_size, BATCH_SIZES[-1])
    batch_sizes = [size for size in BATCH_SIZES if size < largest] + [largest]
    by_beams = {(shape.num_beams, shape.depth): shape for shape in shapes}
    target_sizes = [(batch, rows) for batch in batch_sizes for rows in rows_each]
    draft_sizes = [(batch, *beams) for batch in batch_sizes for beams in by_beams]
    return CostTable(
        _measure(
            target_sizes, lambda size: target_step(*size), clock, budget_seconds / 2, runs_each,
            lambda size: math.prod(size) <= max_num_tokens,
        ),
        _measure(draft_sizes, lambda size: draft(size[0], by_beams[size[1:]]), clock, budget_seconds / 2, runs_each),
    )  # fmt: skip


def _measure(
    sizes: list[Size],
    run: Callable[[Size], None],
    clock: Callable[[], float],
    budget_seconds: float,
    runs_each: int,
    fits: Callable[[Size], bool] = lambda size: True,
) -> dict[Size, float]:
    """Seconds of each size; what is left out costs in proportion to its product of sizes."""
    seconds: dict[Size, float] = {}
    began = clock()
    last_work, last_seconds = 1, 0.0  # of the largest that was timed
    for size in sorted(sizes, key=math.prod):
        work = math.prod(size)
        guess = last_seconds * work / last_work
        to_come = (_TIMED_RUNS + 1) * runs_each * guess
        if not fits(size) or (seconds and clock() - began + to_come > budget_seconds):
            seconds[size] = guess
            continue
        run(size)
        last_work = work
        last_seconds = min(_time(run, size, clock) for _ in range(_TIMED_RUNS)) / runs_each
        seconds[size] = last_seconds
    return seconds


def _time(run: Callable[[Size], None], size: Size, clock: Callable[[], float]) -> float:
    began = clock()
    run(size)
    return clock() - began


def device_key(device: torch.device, engine_digest: str, drafter_digest: str) -> dict[str, str]:
    """Everything that a table of costs depends on."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs"
    else:
        name = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "engine": engine_digest, "drafter": drafter_digest}


def load_or_measure(
    folder: Path, key: dict[str, str], measure: Callable[[], CostTable], is_current: Callable[[CostTable], bool]
) -> CostTable:
    """Read the table of `key` from `folder`, or measure it and leave it there.

    A file that is damaged, or whose table is not current any more, is measured again and replaced.
    A folder that cannot be written is named in a warning.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"costs-{name}.json"
    table = _read(path, key)
    if table is None or not is_current(table):
        table = measure()
        try:
            _write(path, key, table)
        except OSError as error:
            _log.warning("%s: measured costs cannot be kept (%s); every load measures them again", path, error.strerror)
    return table


def _read(path: Path, key: dict[str, str]) -> CostTable | None:
    """The file's table; None where there is no whole one of `key`."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["schema"] != _SCHEMA or fields["key"] != key:
            return None
        target = {(batch, rows): float(seconds) for batch, rows, seconds in fields["target"]}
        draft = {(batch, beams, depth): float(seconds) for batch, beams, depth, seconds in fields["draft"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sizes = [*target, *draft]
    is_whole = bool(target) and all(isinstance(part, int) and part > 0 for size in sizes for part in size)
    is_timed = all(math.isfinite(seconds) and seconds >= 0 for seconds in [*target.values(), *draft.values()])
    return CostTable(target, draft) if is_whole and is_timed else None


def _write(path: Path, key: dict[str, str], table: CostTable) -> None:
    """Replace the file at once, so that no reader sees half of it."""
    fields: dict[str, Any] = {
        "schema": _SCHEMA,
        "key": key,
        "target": [[*size, seconds] for size, seconds in table.target_seconds.items()],
        "draft": [[*size, seconds] for size, seconds in table.draft_seconds.items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        file.write(json.dumps(fields, indent=1) + "\n")
    os.replace(file.name, path)


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
