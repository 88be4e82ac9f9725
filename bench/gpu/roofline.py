"""The least time that a measured case takes on its device, for the bytes that it must read and its products."""

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from bench.gpu.shapes import SHAPES
from runtime.benchmark.op_costs import Cost, op_costs

ELEMENT_BYTES = 2
PROMPT, NEW_TOKENS = 128, 128  # of the rows of decoding
DECODE_CONTEXT = PROMPT + NEW_TOKENS // 2  # of their steps, on average
VERIFY_CONTEXT = 256  # before the tree
LONG_CONTEXT = 65536

Lines = list[dict[str, Any]]


class Ceilings(NamedTuple):
    """Medians of what a device was measured to do; None where no row did."""

    bytes_per_s: float | None
    flop_per_s: float | None


def ceilings(rows: dict[str, Lines]) -> Ceilings:
    found = ([*_values(rows, metric, field)] for metric, field in (("read_bandwidth", "read_bytes_per_s"),
                                                                   ("product_rate", "flop_per_s")))  # fmt: skip
    return Ceilings(*(median(values) if values else None for values in found))


def share(row: str, metric: str, case: str, unit: str, value: float, most: Ceilings) -> float | None:
    """The least time over the measured one, where a case is known and its ceilings were measured.

    Args:
        case: as the summary names it, such as "batch 32".
    """
    model = next((name for name in SHAPES if row.endswith(name)), None)
    _, _, count = case.partition(" ")
    if model is None or most.bytes_per_s is None or not count.isdecimal():
        return None
    cost = _cost(model, metric, int(count), row.startswith("long"))
    if cost is None or (metric == "prefill" and most.flop_per_s is None):
        return None
    seconds = {"tokens/s": int(count) / value, "ms": value / 1e3, "us": value / 1e6}[unit]
    return cost.seconds(most.bytes_per_s, most.flop_per_s or float("inf")) / seconds


def _cost(model: str, metric: str, count: int, is_long: bool) -> Cost | None:
    spec, passed = SHAPES[model], "decoder_step"
    if metric == "decode":
        context = LONG_CONTEXT if is_long else DECODE_CONTEXT
        return op_costs(spec, ELEMENT_BYTES, 1, [context] * count)[passed]
    if metric == "verify":
        return op_costs(spec, ELEMENT_BYTES, count, [VERIFY_CONTEXT + count])[passed]
    if metric == "prefill":
        return op_costs(spec, ELEMENT_BYTES, count, [count])[passed]
    return None


def _values(rows: dict[str, Lines], metric: str, field: str) -> Iterator[float]:
    """From rows that measured a ceiling by itself, and from profiles."""
    for line in (line for lines in rows.values() for line in lines):
        if line.get("metric") == metric:
            yield line["value"]
        elif field in line:
            yield line[field]
