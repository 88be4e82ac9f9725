"""What a step of the target and a draft cost on this device, by their sizes.

Knows no backend and no drafter: it times the functions that it is given.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from runtime.device_costs import interpolate, time_sizes
from runtime.speculation.tree import TreeShape

BATCH_SIZES = (1, 2, 4, 8, 16)
ROWS = (1, 4, 8, 12, 32, 64)  # tokens of each request in one step
_SCHEMA = 1


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

    def to_fields(self) -> dict[str, Any]:
        return {"schema": _SCHEMA, "target": [[*size, seconds] for size, seconds in self.target_seconds.items()],
                "draft": [[*size, seconds] for size, seconds in self.draft_seconds.items()]}  # fmt: skip

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "CostTable | None":
        """None where they are of another version, or no whole table."""
        target = {(batch, rows): float(seconds) for batch, rows, seconds in fields["target"]}
        draft = {(batch, beams, depth): float(seconds) for batch, beams, depth, seconds in fields["draft"]}
        sizes = [*target, *draft]
        is_whole = bool(target) and all(isinstance(part, int) and part > 0 for size in sizes for part in size)
        is_timed = all(math.isfinite(seconds) and seconds >= 0 for seconds in [*target.values(), *draft.values()])
        return cls(target, draft) if fields["schema"] == _SCHEMA and is_whole and is_timed else None


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
        time_sizes(
            target_sizes, lambda size: target_step(*size), math.prod, budget_seconds / 2, runs_each,
            fits=lambda size: math.prod(size) <= max_num_tokens, clock=clock,
        ),
        time_sizes(
            draft_sizes, lambda size: draft(size[0], by_beams[size[1:]]), math.prod, budget_seconds / 2, runs_each,
            clock=clock,
        ),
    )  # fmt: skip
