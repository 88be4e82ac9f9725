"""What cleaning did, in words."""

import time
from collections.abc import Iterator

from pipelines.cleaning import DAY_S, Cleaned, Found, Limits
from pipelines.planning.report import size


def report_lines(done: Cleaned, limits: Limits, dry: bool) -> Iterator[str]:
    """A line for each folder, then the bytes."""
    would = "would remove" if dry else "removed"
    for found, num_bytes in done.removed:
        yield f"{would} {shown(found)}, {size(num_bytes)}: {found.why}"
    yield from (f"kept {shown(found)}: a build makes or uses it" for found in done.in_use)
    yield f"{'would free' if dry else 'freed'} {done.freed_bytes:,} bytes ({size(done.freed_bytes)}); " \
          f"{done.kept} stages stay, {size(done.kept_bytes)}"  # fmt: skip
    if limits == Limits():
        yield "no limit was given, so only leftovers go; write make clean-cache MAX_AGE_DAYS=30 MAX_GB=50"


def shown(found: Found) -> str:
    days = (time.time() - found.used_at) / DAY_S
    return f"{found.path.parent.name}/{found.path.name[:20]} (last used {days:.1f} days ago)"
