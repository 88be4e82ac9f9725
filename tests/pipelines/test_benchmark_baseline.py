"""The transformers baseline does the work it is timed for, and no token is counted that nobody asked for."""

import pytest

from pipelines.benchmark.baseline import TransformersBaseline
from runtime.benchmark.workloads import Workload
from tests.pipelines.unified_models import tiny_model

PROMPTS = [[5, 6, 7], [9], [20, 21, 22, 23], [3, 1]]


@pytest.fixture(scope="module")
def baseline():
    return TransformersBaseline(tiny_model())


def test_one_prefill_then_one_step_per_further_token(baseline):
    timings = baseline.run(Workload(PROMPTS, [6] * 4))
    assert timings.ttft_s > 0
    assert len(timings.step_s) == 5
    assert min(timings.step_s) > 0
    assert timings.total_s == pytest.approx(timings.ttft_s + sum(timings.step_s))
    assert timings.num_tokens == 4 * 6


def test_one_token_is_prefill_alone(baseline):
    timings = baseline.run(Workload(PROMPTS[:1], [1]))
    assert timings.step_s == []
    assert timings.total_s == timings.ttft_s


def test_a_batch_waits_for_its_longest_request(baseline):
    timings = baseline.run(Workload(PROMPTS, [2, 9, 1, 3]))
    assert len(timings.step_s) == 8
    assert timings.num_tokens == 15
