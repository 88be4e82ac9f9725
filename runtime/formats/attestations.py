"""What a bundle's attestations say: how its engine was verified and how fast it was, and on which machine.

Attestations vary between builds, may be absent and are vouched for by nobody: whatever cannot be read is None.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.formats.manifest import ATTESTATIONS_DIR

NOT_RUN = "not_run"  # the one key of a report that stands for none; its value says why
VERIFY_REPORT = Path(ATTESTATIONS_DIR, "verify", "report.json")
BENCH_SUMMARY = Path(ATTESTATIONS_DIR, "bench", "summary.json")
PLAIN_DECODING = "off"  # the drafter of a benchmark's rows that were decoded without one


def not_run(report: Path) -> str:
    """Why the check of this report was left out; "" where it was run, or where there is no report to say so."""
    fields = _read(report)
    return str(fields.get(NOT_RUN, "")) if isinstance(fields, dict) else ""


@dataclass(frozen=True)
class Verified:
    """The engine gate, once passed or failed. KL in nats."""

    passed: bool
    greedy_agreement: float
    mean_kl_nats: float
    perplexity: float
    perplexity_ratio: float
    error_ratio: float  # to transformers' own error in the engine's dtype
    conversion_kl_nats: float | None
    hardware: Mapping[str, Any] | None  # fingerprint; None in bundles of a version that did not record it

    def figures(self) -> dict[str, float]:
        """The numbers alone, by name."""
        values = {name: value for name, value in vars(self).items() if name not in ("passed", "hardware")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Measured:
    """The benchmark's medians."""

    cpu: str
    hardware: Mapping[str, Any] | None
    rows: tuple[Mapping[str, Any], ...]  # see runtime.benchmark.samples.SummaryRow

    def speeds(self, system: str = "enginewright") -> dict[tuple[str, int, int], tuple[float, float | None]]:
        """A system's median tokens/s and its ratio to transformers by (case, batch size, prompt length)."""
        return {
            (row["case"], row["batch_size"], row["prompt_len"]): (row["median"], row["ratio"])
            for row in self.rows
            if row["system"] == system and row["unit"] == "tokens/s"
        }


def for_target(report: Path, target: str) -> Path:
    """Where a report of this kind lies for a target: `verify/` is the CPU's, `verify_cuda/` CUDA's."""
    return report if target == "cpu" else report.parent.with_name(f"{report.parent.name}_{target}") / report.name


def read_verified(bundle: Path, target: str = "cpu") -> Verified | None:
    """The verification report of one engine of a bundle's folder."""
    report = _read(bundle / for_target(VERIFY_REPORT, target))
    try:
        figures, logits = report["engine"]["figures"], report["engine"]["figures"]["logits"]
        return Verified(
            passed=bool(report["engine"]["passed"]),
            greedy_agreement=float(logits["greedy_agreement"]),
            mean_kl_nats=float(logits["mean_kl_nats"]),
            perplexity=float(figures["perplexity"]),
            perplexity_ratio=float(figures["perplexity_ratio"]),
            error_ratio=float(figures["error_ratio"]),
            conversion_kl_nats=report.get("conversion", {}).get("mean_kl_nats"),
            hardware=report.get("hardware"),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_measured(bundle: Path, target: str = "cpu") -> Measured | None:
    """The benchmark summary of one engine of a bundle's folder."""
    summary = _read(bundle / for_target(BENCH_SUMMARY, target))
    try:
        measured = Measured(str(summary["cpu"]), summary.get("hardware"), tuple(summary["rows"]))
        measured.speeds()
    except (KeyError, TypeError, AttributeError):
        return None
    return measured


def read_accepted_lengths(bundle: Path) -> dict[str, float]:
    """Tokens per target step over all prompts of the benchmark, by drafter; empty where drafting was not measured."""
    summary = _read(bundle / BENCH_SUMMARY)
    try:
        rows = [row for row in summary["speculation"] if row["kind"] == "all" and row["drafting"] != PLAIN_DECODING]
        return {str(row["drafting"]): float(row["accepted_length"]) for row in rows}
    except (KeyError, TypeError, ValueError):
        return {}


def device(hardware: Mapping[str, Any] | None, fallback: str = "") -> str:
    """A fingerprint in words, such as `AMD EPYC, 2 cores`."""
    if not hardware:
        return fallback or "a machine that was not recorded"
    return ", ".join([str(hardware.get("cpu", "")), f"{hardware.get('cores', '?')} cores", *hardware.get("gpus", [])])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
