"""A comparison of two bundles in words."""

from collections.abc import Iterator

from runtime.comparison import Comparison
from runtime.weight_comparison import WeightDifferences

MAX_TENSORS = 20
SHOWN_CHARS = 60


def as_text(found: Comparison) -> str:
    """Every section that has something to say, then the verdict."""
    lines = [f"a  {found.a}  {found.a_id}", f"b  {found.b}  {found.b_id}"]
    for title, section in (("config", found.config), ("provenance", found.provenance), ("files", found.files)):
        lines += ["", f"{title}: {len(section)} differ" if section else f"{title}: the same"]
        lines += [f"  {change.name}: {_shown(change.a)} -> {_shown(change.b)}" for change in section]
    lines += ["", *_weights(found.weights)]
    lines += ["", "quality, a and b:" if found.quality else "quality: neither bundle has a report"]
    lines += [f"  {change.name}: {_figure(change.a)}  {_figure(change.b)}" for change in found.quality]
    lines += ["", *_speed(found)]
    verdict = "equal: both manifests vouch for the same bytes" if found.equal else "different"
    return "\n".join([*lines, "", verdict])


def _weights(weights: WeightDifferences | None) -> Iterator[str]:
    if weights is None:
        yield "weights: the same bytes"
        return
    yield f"weights: {weights.num_equal} tensors equal, {len(weights.differ)} differ"
    for item in weights.differ[:MAX_TENSORS]:
        kinds = item.a if item.a == item.b else f"{item.a} -> {item.b}"
        largest = "shapes differ" if item.max_abs_diff is None else f"at most {item.max_abs_diff:.3g}"
        yield f"  {item.name} ({kinds}): {largest}"
    if len(weights.differ) > MAX_TENSORS:
        yield f"  and {len(weights.differ) - MAX_TENSORS} more; --json lists all"
    for side, names in (("a", weights.only_a), ("b", weights.only_b)):
        yield from (f"  only in {side}: {name}" for name in names)


def _speed(found: Comparison) -> Iterator[str]:
    if not found.speed:
        yield "speed: neither bundle was measured"
        return
    yield f"speed in tokens/s, a on {found.a_device}, b on {found.b_device}:"
    if not found.same_hardware:
        yield "  WARNING: not known to be the same hardware, so these stand side by side and are not compared"
    for name, a, b in found.speed:
        ratio = f"  b/a {b / a:.2f}" if found.same_hardware and a and b else ""
        yield f"  {name}: {_figure(a)}  {_figure(b)}{ratio}"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."
