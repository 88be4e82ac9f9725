"""Peak resident memory of a piece of work, as Linux counts it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Filled in when the work ends; None where this system does not tell."""

    added_bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure how far the work in the block raises resident memory at its highest, pages of mapped files included."""
    peak = Peak()
    before = _status_bytes("VmRSS") if _reset() else None
    yield peak
    after = _status_bytes("VmHWM")
    if before is not None and after is not None:
        peak.added_bytes = max(after - before, 0)


def _reset() -> bool:
    """Set the high-water mark to what is resident now."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
