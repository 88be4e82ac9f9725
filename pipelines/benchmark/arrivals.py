"""Measures what requests feel when others arrive, and draws it: a burst over one prefix, chunk sizes beside decodes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.benchmark.plots import draw_burst, draw_chunks
from runtime.backends.base import Backend
from runtime.benchmark.arrivals import (
    CHUNK_BUDGETS,
    ITL_RATIOS,
    BurstSample,
    ChunkSample,
    run_burst,
    run_chunks,
    summarise_chunks,
)

SAMPLES_FILE = "arrivals.jsonl"
NUM_DECODING = 4
_CURVES = ("tokens_per_s", "ttft_ms", "busy_p99_ms", "idle_p99_ms")


def measure_arrivals(
    backend: Backend,
    vocab_size: int,
    repeats: int,
    subtitle: str,
    out_dir: Path,
    report: Callable[[float, str], None],
    budgets: Sequence[int] = CHUNK_BUDGETS,
    ratios: Sequence[float] = ITL_RATIOS,
) -> dict[str, Any]:
    """Write raw samples and two plots; return what they come to, as plain data."""
    prompt_len = min(8192, backend.limits.max_seq_len - 2)
    samples: list[BurstSample | ChunkSample] = []
    with (out_dir / SAMPLES_FILE).open("w", buffering=1, encoding="utf-8") as file:
        for sample in run_burst(backend, vocab_size, repeats, report):
            samples.append(sample)
            file.write(json.dumps({"case": "burst", **asdict(sample)}) + "\n")
        for chunk in run_chunks(backend, vocab_size, prompt_len, NUM_DECODING, repeats, report, budgets, ratios):
            samples.append(chunk)
            file.write(json.dumps({"case": "chunks", **asdict(chunk)}) + "\n")
    bursts = [sample for sample in samples if isinstance(sample, BurstSample)]
    rows = summarise_chunks(sample for sample in samples if isinstance(sample, ChunkSample))
    draw_burst(bursts, subtitle).savefig(out_dir / "burst.png", dpi=140)
    draw_chunks(rows, subtitle).savefig(out_dir / "chunks.png", dpi=140)
    return {"burst": _burst(bursts), "chunks": [asdict(row) for row in rows]}


def arrival_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """What `measure_arrivals` returned, if it ran, as metrics: the burst, and chunks by their time."""
    if not figures:
        return {}
    burst = figures["burst"]
    metrics = {f"burst_{name}": burst[name] for name in ("ttft_with_reuse_s", "ttft_without_s", "ratio")}
    for row in figures["chunks"]:
        if row["itl_ratio"] is not None:
            metrics |= {f"itl_ratio_{row['itl_ratio']:g}_{name}": row[name] for name in _CURVES}
    return metrics


def arrival_curves(figures: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """The curves over the fixed budgets, which stand where a training has its steps."""
    rows = [row for row in figures.get("chunks", []) if row["itl_ratio"] is None]
    return {f"chunks_{name}": [(row["budget"], row[name]) for row in rows] for name in _CURVES if rows}


def _burst(samples: list[BurstSample]) -> dict[str, float]:
    """Median time to first token of the requests after the first, with reuse and without, and how many times better."""

    def later(prefix_reuse: bool) -> float:
        return median(s.ttft_s for s in samples if s.prefix_reuse == prefix_reuse and s.request > 0)

    reused, computed = later(True), later(False)
    return {"prefix_len": samples[0].prefix_len, "ttft_with_reuse_s": reused, "ttft_without_s": computed,
            "ratio": computed / reused}  # fmt: skip
