"""What must hold after a soak, and the report that says whether it did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipelines.benchmark.plots import COLOURS, INK, dress_axes

WARM_UP = 0.25  # the share of the time before the fit: caches fill and allocators find their size
MB = 1e6
Memory = Sequence[tuple[float, int]]  # seconds since the start, resident bytes


def slope_mb_per_minute(memory: Memory) -> float:
    """Growth of resident memory after the warm-up: a least-squares line."""
    times, sizes = (np.array(values, dtype=float) for values in zip(*memory, strict=True))
    settled = times >= WARM_UP * times[-1]
    slope = np.polyfit(times[settled], sizes[settled], 1)[0]
    return float(slope * 60 / MB)


def idle_failures(metrics: Mapping[str, float], exit_code: int) -> list[str]:
    """What an idle server still holds, and how it ended."""
    found = [
        f"{name} is {metrics[name]:g} when all is over; it must be 0"
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        if metrics[name] != 0
    ]
    return found + ([f"the server ended with {exit_code}, not 0"] if exit_code else [])


def draw_memory(memory: Memory, slope: float, subtitle: str, path: Path) -> None:
    """Resident memory over time."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([time / 60 for time, _ in memory], [size / MB for _, size in memory], color=COLOURS["enginewright"])
    axes.axvline(WARM_UP * memory[-1][0] / 60, color=COLOURS["transformers"], linestyle="--", linewidth=1)
    axes.set_title(
        f"Memory of a server under soak: {slope:+.2f} MB/min\n{subtitle}", loc="left", fontsize=11, color=INK
    )
    axes.set_xlabel("minutes; the dashed line ends the warm-up", fontsize=9, color=INK)
    dress_axes(axes, "resident, MB")
    figure.savefig(path, dpi=140)
