"""Bursts and chunk sizes: the work is what it says it is, and the figures follow from the timings."""

import pytest

from runtime.benchmark.arrivals import (
    BURST_OWN,
    ChunkSample,
    longest_burst_prefix,
    percentile,
    run_burst,
    run_chunks,
    summarise_chunks,
)
from runtime.benchmark.workloads import burst_workload
from runtime.errors import EnginewrightError
from tests.runtime.tiny import SPEC, make_engine


def quiet(fraction, text):
    assert 0 <= fraction <= 1
    assert text


def test_a_burst_shares_its_prefix_and_nothing_more():
    work = burst_workload(4, 10, 6, 1000)
    assert len({tuple(prompt[:10]) for prompt in work.prompts}) == 1
    assert len({tuple(prompt[:11]) for prompt in work.prompts}) == 4
    assert {len(prompt) for prompt in work.prompts} == {16}


def test_every_request_of_a_burst_is_timed_with_reuse_and_without(checkpoint):
    backend = make_engine(checkpoint, max_num_tokens=64, max_batch_size=8, num_blocks=192).backend
    samples = list(run_burst(backend, SPEC.vocab_size, 2, quiet))
    assert longest_burst_prefix(backend) == 96 - BURST_OWN - 1 == samples[0].prefix_len
    assert sorted((s.repeat, s.prefix_reuse, s.request) for s in samples) == [
        (repeat, reuse, request) for repeat in range(2) for reuse in (False, True) for request in range(8)
    ]
    for one in samples:
        later = [s.ttft_s for s in samples if (s.repeat, s.prefix_reuse) == (one.repeat, one.prefix_reuse)]
        assert 0 < min(later) <= one.ttft_s


def test_a_prompt_arrives_in_chunks_of_the_budget_beside_the_decodes(checkpoint):
    backend = make_engine(checkpoint, num_blocks=96).backend
    samples = list(run_chunks(backend, SPEC.vocab_size, 40, 2, 1, quiet, budgets=(0, 10, 40, 63), ratios=()))
    assert [(s.budget, len(s.busy_s)) for s in samples] == [(10, 4), (40, 1)]  # 63 leaves no room for two decodes
    assert all(len(s.idle_s) == 32 and s.ttft_s == sum(s.busy_s) for s in samples)
    assert backend.limits.max_num_tokens == 64


def test_a_prompt_arrives_at_the_pace_of_each_ratio(checkpoint):
    backend = make_engine(checkpoint, num_blocks=96).backend
    samples = list(run_chunks(backend, SPEC.vocab_size, 40, 2, 2, quiet, budgets=(40,), ratios=(1.5, 4.0)))
    assert [(s.budget, s.itl_ratio, s.repeat) for s in samples] == [
        (40, None, 0), (40, None, 1), (64, 1.5, 0), (64, 1.5, 1), (64, 4.0, 0), (64, 4.0, 1),
    ]  # fmt: skip
    assert all(0 < s.ttft_s == sum(s.busy_s) and len(s.idle_s) == max(32, len(s.busy_s)) for s in samples)
    assert [row.itl_ratio for row in summarise_chunks(samples)] == [None, 1.5, 4.0]


def test_what_an_engine_cannot_run_is_refused(checkpoint):
    backend = make_engine(checkpoint).backend
    with pytest.raises(EnginewrightError, match="64 tokens a step and 4 requests"):
        list(run_chunks(backend, SPEC.vocab_size, 40, 4, 1, quiet))
    short = make_engine(checkpoint, max_seq_len=65).backend
    with pytest.raises(EnginewrightError, match="a context of 66 tokens or more"):
        list(run_burst(short, SPEC.vocab_size, 1, quiet))


def test_rows_pool_the_steps_and_take_medians_of_the_rest():
    """100 tokens of the prompt and 2 decodes in 2 steps of 0.1 s; then in 1 of 0.4 s."""
    samples = [
        ChunkSample(64, 100, 2, 0, 0.2, [0.1, 0.1], [0.01] * 3),
        ChunkSample(64, 100, 2, 1, 0.4, [0.4], [0.02]),
    ]
    (row,) = summarise_chunks(samples)
    assert (row.tokens_per_s, row.ttft_ms) == pytest.approx(((104 / 0.2 + 102 / 0.4) / 2, 300))
    assert (row.busy_p99_ms, row.idle_p99_ms) == pytest.approx((400, 20))
    assert row.step_tokens == pytest.approx(200 / 3)


def test_percentile_is_the_nearest_rank():
    assert percentile(list(range(1, 201)), 0.99) == 198
    assert percentile([5.0], 0.99) == 5.0
