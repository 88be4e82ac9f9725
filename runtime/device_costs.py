"""Costs that are measured on the device at hand: timing, what lies between measured sizes, and a file to keep them in.

Knows no backend: it times the functions that it is given.
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

_log = logging.getLogger(__name__)
_LEAST_RUNS, _SHORT_SECONDS = 3, 0.05

Size = TypeVar("Size", bound=tuple[int, ...])


class Costs(Protocol):
    """A table of seconds that a file can hold."""

    def to_fields(self) -> dict[str, Any]:
        """Plain data, the whole table."""
        ...


Table = TypeVar("Table", bound=Costs)


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


def time_sizes(
    sizes: Iterable[Size],
    run: Callable[[Size], None],
    work: Callable[[Size], int],
    budget_seconds: float,
    runs_each: int = 1,
    most_runs: int = _LEAST_RUNS,
    fits: Callable[[Size], bool] = lambda size: True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Size, float]:
    """Seconds of each size, little work first, the best of three after one to warm up: noise only ever adds.

    What does not fit, or not into what is left of the time, is not run: it is taken to cost in proportion to its work.

    Args:
        run: runs a size `runs_each` times, to its end on the device.
        most_runs: how often short ones are run, as long as that takes no more than 50 ms.
    """
    seconds: dict[Size, float] = {}
    began = clock()
    last_work, last_seconds = 1, 0.0  # of the largest that was timed
    for size in sorted(sizes, key=work):
        guess = last_seconds * work(size) / last_work
        to_come = (_LEAST_RUNS + 1) * runs_each * guess
        if not fits(size) or (seconds and clock() - began + to_come > budget_seconds):
            seconds[size] = guess
            continue
        run(size)
        last_work = work(size)
        times = [_time(run, size, clock) for _ in range(_LEAST_RUNS)]
        while len(times) < most_runs and sum(times) < _SHORT_SECONDS:
            times.append(_time(run, size, clock))
        last_seconds = min(times) / runs_each
        seconds[size] = last_seconds
    return seconds


def _time(run: Callable[[Size], None], size: Size, clock: Callable[[], float]) -> float:
    began = clock()
    run(size)
    return clock() - began


def device_key(device: torch.device, **digests: str) -> dict[str, str]:
    """Everything that a table of costs depends on: the device, torch, and `digests` of what runs there."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs"
    else:
        name = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, **digests}


def load_or_measure(
    folder: Path | None,
    key: dict[str, str],
    parse: Callable[[dict[str, Any]], Table | None],
    measure: Callable[[], Table],
    is_current: Callable[[Table], bool],
) -> Table:
    """Read the table of `key` from `folder`, or measure it and leave it there; without a folder, measure it.

    A file that is damaged, or whose table is not current any more, is measured again and replaced.
    A folder that cannot be written is named in a warning.

    Args:
        parse: makes a table of its fields, None of those of another version; it may fail on what is no table.
    """
    if folder is None:
        return measure()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"costs-{name}.json"
    table = _read(path, key, parse)
    if table is None or not is_current(table):
        table = measure()
        try:
            _write(path, {"key": key, **table.to_fields()})
        except OSError as error:
            _log.warning("%s: measured costs cannot be kept (%s); every load measures them again", path, error.strerror)
    return table


def _read(path: Path, key: dict[str, str], parse: Callable[[dict[str, Any]], Table | None]) -> Table | None:
    """The file's table; None where there is no whole one of `key`."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return parse(fields) if fields["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, fields: dict[str, Any]) -> None:
    """Replace the file at once, so that no reader sees half of it."""
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
