"""Arrivals as the bench stage leaves them: raw lines, two plots, and figures that follow from the lines."""

import json

import pytest

from pipelines.benchmark.arrivals import arrival_curves, arrival_metrics, measure_arrivals
from runtime.benchmark.arrivals import ChunkSample, summarise_chunks
from tests.runtime.tiny import SPEC, make_checkpoint, make_engine


def test_figures_plots_metrics_and_curves_come_from_the_lines(tmp_path):
    backend = make_engine(make_checkpoint(tmp_path / "model"), max_batch_size=8, num_blocks=256).backend
    figures = measure_arrivals(
        backend, SPEC.vocab_size, 1, "tiny", tmp_path, lambda done, text: None, budgets=(16, 48), ratios=(2.0,)
    )
    lines = [json.loads(line) for line in (tmp_path / "arrivals.jsonl").read_text().splitlines()]
    chunks = [ChunkSample(**line) for line in lines if line.pop("case") == "chunks"]
    rows = summarise_chunks(chunks)
    assert [row["tokens_per_s"] for row in figures["chunks"]] == [row.tokens_per_s for row in rows]
    assert len(lines) - len(chunks) == 2 * 8, "every request of the burst, with reuse and without"
    for name in ("burst.png", "chunks.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    curves = arrival_curves(figures)
    assert curves["chunks_busy_p99_ms"] == [(16, rows[0].busy_p99_ms), (48, rows[1].busy_p99_ms)]
    assert set(curves) == {f"chunks_{name}" for name in ("tokens_per_s", "ttft_ms", "busy_p99_ms", "idle_p99_ms")}
    metrics = arrival_metrics(figures)
    assert metrics["itl_ratio_2_ttft_ms"] == rows[2].ttft_ms
    assert metrics["burst_ratio"] == pytest.approx(metrics["burst_ttft_without_s"] / metrics["burst_ttft_with_reuse_s"])


def test_a_build_that_measures_no_arrivals_has_no_figures_of_them():
    assert arrival_metrics({}) == arrival_curves({}) == {}
