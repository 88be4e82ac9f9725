"""From raw samples to what a scenario comes to: percentiles, rates, and goodput under an objective."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.load.options import LoadOptions
from pipelines.load.sample import Sample
from runtime.benchmark.arrivals import percentile


@dataclass(frozen=True)
class Row:
    """One scenario. Latencies are of answered requests; rates count from the first request's due time to the last end.

    itl: gaps between pieces of text, of all requests together. good_share: of all requests, failed ones included.
    """

    scenario: str
    num_requests: int
    num_failed: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    good_share: float
    goodput_per_s: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    tpot_p50_ms: float
    total_p50_ms: float
    total_p99_ms: float
    most_late_ms: float  # by how much the client itself sent its latest request late


def summarise(samples: Sequence[Sample], options: LoadOptions) -> Row | None:
    """Summarise one scenario's samples; None where no request was answered."""
    answered = [sample for sample in samples if sample.error is None]
    if not answered:
        return None
    begun = min(sample.due_s for sample in samples)
    duration_s = max(sample.due_s + sample.total_s for sample in samples) - begun
    num_good = sum(is_good(sample, options) for sample in answered)
    ttfts, totals, gaps = (
        [sample.ttft_s for sample in answered],
        [sample.total_s for sample in answered],
        [gap for sample in answered for gap in sample.gaps_s] or [0.0],
    )
    return Row(
        scenario=samples[0].scenario,
        num_requests=len(samples),
        num_failed=len(samples) - len(answered),
        duration_s=duration_s,
        requests_per_s=len(answered) / duration_s,
        output_tokens_per_s=sum(sample.output_tokens for sample in answered) / duration_s,
        good_share=num_good / len(samples),
        goodput_per_s=num_good / duration_s,
        ttft_p50_ms=percentile(ttfts, 0.5) * 1e3,
        ttft_p90_ms=percentile(ttfts, 0.9) * 1e3,
        ttft_p99_ms=percentile(ttfts, 0.99) * 1e3,
        itl_p50_ms=percentile(gaps, 0.5) * 1e3,
        itl_p99_ms=percentile(gaps, 0.99) * 1e3,
        tpot_p50_ms=percentile([sample.tpot_s for sample in answered], 0.5) * 1e3,
        total_p50_ms=percentile(totals, 0.5) * 1e3,
        total_p99_ms=percentile(totals, 0.99) * 1e3,
        most_late_ms=max(sample.sent_s for sample in samples) * 1e3,
    )


def is_good(sample: Sample, options: LoadOptions) -> bool:
    """Whether an answered request met the objective: its first token, and 99 % of its gaps, came in time."""
    in_time = sample.ttft_s * 1e3 <= options.slo_ttft_ms
    return in_time and percentile(sample.gaps_s or [0.0], 0.99) * 1e3 <= options.slo_itl_ms


def errors_of(samples: Sequence[Sample]) -> dict[str, int]:
    """Why requests failed, most frequent first."""
    return dict(Counter(sample.error for sample in samples if sample.error is not None).most_common())
