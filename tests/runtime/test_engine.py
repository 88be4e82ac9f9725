"""The engine's invariants on a tiny fp64 model: what a request gets does not depend on what else is running."""

import random

import pytest

from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.loading import make_backend
from runtime.sampling import SamplingParams
from runtime.scoring import score
from tests.runtime.tiny import EOS, PLAN, make_engine

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def run(engine, requests_params, *, cancel_at=None, rng=None):
    """Feed requests at random moments, step to the end with integrity checks, return requests."""
    rng = rng or random.Random(0)
    queue, requests, steps = list(requests_params), [], 0
    while queue or engine.has_work:
        while queue and rng.random() < 0.6:
            requests.append(engine.add(*queue.pop(0)))
        engine.step()
        engine.scheduler.check()
        if cancel_at is not None and steps == cancel_at and requests:
            engine.finish(rng.choice(requests), "cancelled")
            engine.scheduler.check()
        steps += 1
        assert steps < 5000, "the engine does not come to an end"
    assert engine.scheduler.pool.num_free == engine.backend.limits.num_blocks
    return requests


def random_request(rng, longest_prompt=40):
    prompt = [rng.randrange(256) for _ in range(rng.randint(1, longest_prompt))]
    sampled = rng.random() < 0.6
    params = SamplingParams(
        temperature=rng.choice([0.7, 1.0, 1.5]) if sampled else 0.0,
        top_k=rng.choice([0, 5, 50]) if sampled else 0,
        top_p=rng.choice([1.0, 0.8]) if sampled else 1.0,
        min_p=rng.choice([0.0, 0.05]) if sampled else 0.0,
        seed=rng.randrange(2**40),
        max_tokens=rng.randint(1, 20),
        ignore_eos=rng.random() < 0.5,
    )
    return prompt, params, rng.randrange(3)


def alone(checkpoint, request_params):
    return run(make_engine(checkpoint, max_num_tokens=96), [request_params])[0].output_ids


@pytest.mark.parametrize(("read_lag", "most_repeats"), [(0, 1), (1, 1), (2, 1), (0, 3), (1, 4)])
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"max_num_tokens": 5}, id="prompts in chunks of 5"),
        pytest.param({"num_blocks": 18}, id="blocks run out"),
        pytest.param({"num_blocks": 18, "max_num_tokens": 7, "block_size": 4}, id="both"),
        pytest.param({"block_size": 96, "num_blocks": 4}, id="one block per request"),
    ],
)
def test_output_does_not_depend_on_batch_chunks_preemption_or_lag(checkpoint, limits, read_lag, most_repeats):
    rng = random.Random(7)
    wanted = [random_request(rng) for _ in range(14)]
    engine = make_engine(checkpoint, read_lag, most_repeats, **limits)
    together = [request.output_ids for request in run(engine, wanted)]
    assert together == [alone(checkpoint, request_params) for request_params in wanted]


def test_prompts_keep_to_their_budget_while_others_decode(checkpoint):
    rng = random.Random(7)
    wanted = [random_request(rng) for _ in range(14)]
    engine = Engine(make_backend(checkpoint, PLAN), frozenset([EOS]), prefill_budget=3)
    schedule, chunks = engine.scheduler.schedule, []

    def watched(*asked):
        planned = schedule(*asked)
        rows = planned.plan.rows
        if any(row.token_ids is None for row in rows):
            chunks.append(sum(row.num_tokens for row in rows if row.token_ids is not None))
        return planned

    engine.scheduler.schedule = watched
    assert [request.output_ids for request in run(engine, wanted)] == [alone(checkpoint, one) for one in wanted]
    assert max(chunks) == 3


def test_blocks_running_out_really_preempts(checkpoint):
    rng = random.Random(7)
    engine = make_engine(checkpoint, num_blocks=18)
    requests = run(engine, [random_request(rng) for _ in range(14)])
    assert sum(request.num_preemptions for request in requests) > 0


@pytest.mark.parametrize("seed", range(8))
def test_cancelling_at_any_point_frees_blocks_and_leaves_others_alone(checkpoint, seed):
    rng = random.Random(seed)
    wanted = [random_request(rng) for _ in range(6)]
    engine = make_engine(checkpoint, rng.randrange(2), num_blocks=24)
    requests = run(engine, wanted, cancel_at=rng.randrange(12), rng=rng)
    for request, request_params in zip(requests, wanted, strict=True):
        expected = alone(checkpoint, request_params)
        if request.finish_reason == "cancelled":
            assert request.output_ids == expected[: len(request.output_ids)]
        else:
            assert request.output_ids == expected


def test_greedy_equals_the_argmax_of_one_pass_over_the_whole_text(checkpoint):
    engine = make_engine(checkpoint)
    prompt = [5, 99, 3, 42, 17]
    output = run(engine, [(prompt, GREEDY)])[0].output_ids
    logits = score(engine, prompt + output, first=len(prompt) - 1)
    assert logits[:-1].argmax(dim=-1).tolist() == output


def test_samples_of_one_prompt_differ_and_repeat(checkpoint):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=16, ignore_eos=True)
    first = [run(make_engine(checkpoint), [([1, 2, 3], params, index)])[0].output_ids for index in range(3)]
    again = [request.output_ids for request in run(make_engine(checkpoint), [([1, 2, 3], params, i) for i in range(3)])]
    assert first == again
    assert len({tuple(output) for output in first}) == 3


def test_without_a_seed_two_requests_differ(checkpoint):
    params = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True)
    outputs = [request.output_ids for request in run(make_engine(checkpoint), [([1, 2], params), ([1, 2], params)])]
    assert outputs[0] != outputs[1]


def test_end_tokens_end_a_request_and_ignore_eos_goes_on(checkpoint):
    prompt = [7, 7, 7]
    free = run(make_engine(checkpoint), [(prompt, GREEDY)])[0].output_ids
    stop_at = free[4]
    params = SamplingParams(max_tokens=12, stop_token_ids=(stop_at,), ignore_eos=True)
    stopped = run(make_engine(checkpoint), [(prompt, params)])[0]
    assert stopped.output_ids == free[: free.index(stop_at) + 1]
    assert stopped.finish_reason == "stop"
    assert EOS not in stopped.stop_ids
    assert run(make_engine(checkpoint), [(prompt, GREEDY)])[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "message"),
    [
        (0, 4, "the prompt is empty"),
        (96, None, "the prompt has 96 tokens; this engine holds 96"),
        (90, 7, "ask for at most 6"),
    ],
)
def test_a_request_over_the_limits_is_refused_at_once(checkpoint, prompt_len, max_tokens, message):
    engine = make_engine(checkpoint)
    with pytest.raises(EnginewrightError, match=message):
        engine.add([1] * prompt_len, SamplingParams(max_tokens=max_tokens))
    assert not engine.has_work


def test_max_tokens_none_goes_on_to_the_engine_limit(checkpoint):
    request = run(make_engine(checkpoint), [([1] * 90, SamplingParams(max_tokens=None, ignore_eos=True))])[0]
    assert len(request.output_ids) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
        ("min_p", 1.5), ("n", 0), ("max_tokens", 0), ("logprobs", 21), ("seed", 2**63), ("stop", ("",)),
        ("logit_bias", {3: 100.1}), ("logit_bias", {3: float("nan")}), ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")), ("frequency_penalty", 2.1), ("presence_penalty", -2.1),
        ("presence_penalty", float("nan")), ("min_tokens", -1), ("min_tokens", 257),
    ],
)  # fmt: skip
def test_impossible_sampling_parameters_name_value_and_bound(field, value):
    with pytest.raises(EnginewrightError, match=rf"sampling parameter {field}.* is .*; it must be"):
        SamplingParams(**{field: value})


def test_steps_are_launched_together_only_while_all_decode_and_nobody_ends(checkpoint):
    engine = make_engine(checkpoint, read_lag=1, most_repeats=4)
    schedule, planned = engine.scheduler.schedule, []

    def watched(*asked):
        planned.append(schedule(*asked))
        return planned[-1]

    engine.scheduler.schedule = watched
    long, short = (([count, 2, 3], SamplingParams(max_tokens=count, ignore_eos=True)) for count in (23, 3))
    requests = run(engine, [long, short])
    repeats = [plan.repeats for _, plan, _ in planned if plan.rows]
    assert repeats[:2] == [1, 2], "the prompts, then as many as the shorter request needs"
    assert repeats[2:] == [4, 4, 4, 4, 4], "the longer one alone: 23 - 1 - 2 tokens in fours"
    assert [len(request.output_ids) for request in requests] == [23, 3]
