"""The arithmetic of a load, on samples worked out by hand."""

import pytest

from pipelines.load.figures import errors_of, is_good, summarise
from pipelines.load.options import LoadOptions
from pipelines.load.sample import Sample

OPTIONS = LoadOptions(slo_ttft_ms=200.0, slo_itl_ms=50.0)


def sample(due_s, text_s, output_tokens, error=None):
    total_s = text_s[-1] + 0.01 if text_s else 0.5
    return Sample("closed", 0, due_s, 0.001, text_s, total_s, 9, output_tokens, True, "stop", error)


SAMPLES = [
    sample(1.0, [0.1, 0.14, 0.18], 6),  # good
    sample(2.0, [0.3, 0.31], 2),  # its first token is late
    sample(3.0, [0.2, 0.26, 0.27], 3),  # a gap is too long
    sample(4.0, [], 0, "429: full"),
    sample(4.5, [0.15], 1),  # good; a single token has no gap
]


def test_a_scenario_comes_to_what_one_works_out_by_hand():
    row = summarise(SAMPLES, OPTIONS)
    duration = 4.5 + 0.16 - 1.0
    assert (row.num_requests, row.num_failed) == (5, 1)
    assert row.duration_s == pytest.approx(duration)
    assert row.requests_per_s == pytest.approx(4 / duration)
    assert row.output_tokens_per_s == pytest.approx(12 / duration)
    assert row.good_share == pytest.approx(2 / 5)
    assert row.goodput_per_s == pytest.approx(2 / duration)
    assert (row.ttft_p50_ms, row.ttft_p90_ms) == pytest.approx((150, 300))
    assert (row.itl_p50_ms, row.itl_p99_ms) == pytest.approx((40, 60))  # of 10, 10, 40, 40 and 60
    assert row.tpot_p50_ms == pytest.approx(10)  # of 0, 10, 16 and 35
    assert (row.total_p50_ms, row.total_p99_ms) == pytest.approx((190, 320))
    assert row.most_late_ms == pytest.approx(1)


def test_one_gap_in_a_hundred_may_be_long():
    steady = [0.1 + 0.01 * index for index in range(101)]
    late = [*steady[:-1], steady[-1] + 1]
    assert is_good(sample(0.0, late, 101), OPTIONS)
    assert not is_good(sample(0.0, late[1:], 100), OPTIONS)


def test_where_nothing_was_answered_there_is_nothing_to_say():
    failed = [sample(0.0, [], 0, "429: full"), sample(0.0, [], 0, "timeout"), sample(0.0, [], 0, "429: full")]
    assert summarise(failed, OPTIONS) is None
    assert errors_of(failed) == {"429: full": 2, "timeout": 1}
