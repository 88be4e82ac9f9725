"""Benchmark samples and their summary: medians with their spread, and the engine's advantage over transformers."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

from runtime.errors import EnginewrightError

System = Literal["enginewright", "enginewright_cpu", "transformers"]  # the engine measured, and what is beside it
Case = Literal["decode", "prefill", "mixed"]
Unit = Literal["tokens/s", "ms"]


@dataclass(frozen=True)
class Sample:
    """One raw observation, one line of samples.jsonl. `repeat` counts from 0; warm-up is not recorded.

    prompt_len is 0 where the requests' lengths differ (mixed).
    """

    system: System
    case: Case
    batch_size: int
    prompt_len: int
    repeat: int
    value: float
    unit: Unit

    def __post_init__(self) -> None:
        for name, allowed in (("system", System), ("case", Case), ("unit", Unit)):
            if getattr(self, name) not in get_args(allowed):
                known = ", ".join(get_args(allowed))
                raise EnginewrightError(f"benchmark sample: {name} is {getattr(self, name)!r}, not one of {known}")
        if not 0 < self.value < float("inf"):
            raise EnginewrightError(f"benchmark sample: {self.case} of {self.system} is {self.value} {self.unit}")


@dataclass(frozen=True)
class SummaryRow:
    """All repeats of one measurement. ratio: how many times better than transformers' median (larger is better in
    either unit), 1 for transformers itself, None where transformers was not measured."""

    system: System
    case: Case
    batch_size: int
    prompt_len: int
    unit: Unit
    num_repeats: int
    median: float
    min: float
    max: float
    ratio: float | None


def summarise(samples: Iterable[Sample]) -> list[SummaryRow]:
    """One row per system and measurement, in order of first appearance."""
    groups: dict[tuple[System, Case, int, int, Unit], list[float]] = {}
    for sample in samples:
        key = (sample.system, sample.case, sample.batch_size, sample.prompt_len, sample.unit)
        groups.setdefault(key, []).append(sample.value)
    rows = []
    for (system, case, batch_size, prompt_len, unit), values in groups.items():
        opponent = groups.get(("transformers", case, batch_size, prompt_len, unit))
        middle = median(values)
        ratio = None if opponent is None else middle / median(opponent)
        if ratio is not None and unit == "ms":
            ratio = 1 / ratio
        rows.append(
            SummaryRow(system, case, batch_size, prompt_len, unit, len(values), middle, min(values), max(values), ratio)
        )
    return rows
