"""Measures what requests feel when others arrive, and draws it: a burst over one prefix, chunk sizes beside decodes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.benchmark.plots import draw_burst, draw_chunks
from runtime.backends.base import Backend
from runtime.benchmark.arrivals import (
    CHUNK_BUDGETS,
    BurstSample,
    ChunkSample,
    run_burst,
    run_chunks,
    summarise_chunks,
)

SAMPLES_FILE = "arrivals.jsonl"
NUM_DECODING = 4


def measure_arrivals(
    backend: Backend,
    vocab_size: int,
    repeats: int,
    subtitle: str,
    out_dir: Path,
    report: Callable[[float, str], None],
    budgets: Sequence[int] = CHUNK_BUDGETS,
) -> dict[str, Any]:
    """Write raw samples and two plots; return what they come to, as plain data."""
    prompt_len = min(8192, backend.limits.max_seq_len - 2)
    samples: list[BurstSample | ChunkSample] = []
    with (out_dir / SAMPLES_FILE).open("w", buffering=1, encoding="utf-8") as file:
        for sample in run_burst(backend, vocab_size, repeats, report):
            samples.append(sample)
            file.write(json.dumps({"case": "burst", **asdict(sample)}) + "\n")
        for chunk in run_chunks(backend, vocab_size, prompt_len, NUM_DECODING, repeats, report, budgets):
            samples.append(chunk)
            file.write(json.dumps({"case": "chunks", **asdict(chunk)}) + "\n")
    bursts = [sample for sample in samples if isinstance(sample, BurstSample)]
    rows = summarise_chunks(sample for sample in samples if isinstance(sample, ChunkSample))
    draw_burst(bursts, subtitle).savefig(out_dir / "burst.png", dpi=140)
    draw_chunks(rows, subtitle).savefig(out_dir / "chunks.png", dpi=140)
    return {"burst": _burst(bursts), "chunks": [asdict(row) for row in rows]}


def _burst(samples: list[BurstSample]) -> dict[str, float]:
    """Median time to first token of the requests after the first, with reuse and without, and how many times better."""

    def later(prefix_reuse: bool) -> float:
        return median(s.ttft_s for s in samples if s.prefix_reuse == prefix_reuse and s.request > 0)

    reused, computed = later(True), later(False)
    return {"prefix_len": samples[0].prefix_len, "ttft_with_reuse_s": reused, "ttft_without_s": computed,
            "ratio": computed / reused}  # fmt: skip
