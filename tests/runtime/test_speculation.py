"""Speculation is lossless: on fp64 models every output equals plain decoding's, whatever is drafted."""

import random
from dataclasses import replace

import pytest

from runtime.llm import LLM
from runtime.sampling import SamplingParams
from runtime.spec import RopeScaling
from runtime.speculation.cost_table import CostTable
from runtime.speculation.policy import AcceptancePrior, SpeculationPolicy
from runtime.speculation.tree import TreeShape
from runtime.text_engine import TextEngine
from tests.runtime.drafting import Always, Oracle
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.tiny import PLAN, SPEC, make_checkpoint, make_engine

SHAPES = [TreeShape(6, 2, 3), TreeShape(12, 4, 5), TreeShape(33, 4, 4)]
FAMILIES = {
    "llama": SPEC,
    "llama3 rope": replace(SPEC, rope_scaling=RopeScaling("llama3", factor=8.0, original_max_position_embeddings=32)),
    "mistral, window 9": replace(SPEC, architecture="MistralForCausalLM", sliding_window=9, tied_head=False),
    "qwen2": replace(SPEC, architecture="Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": replace(SPEC, architecture="Qwen3ForCausalLM", qk_norm=True, head_dim=16),
}


def speculate(checkpoint, wanted, policy, *, accuracy=0.8, read_lag=0, most_repeats=1, **limits):
    """Run all of `wanted` together with drafts; return (requests, expected outputs)."""
    expected = [alone(checkpoint, request_params) for request_params in wanted]
    texts = [prompt + output for (prompt, *_), output in zip(wanted, expected, strict=True)]
    engine = make_engine(
        checkpoint, read_lag, most_repeats, drafter=Oracle(texts, accuracy), policy=policy, **limits
    )  # fmt: skip
    return run(engine, wanted), expected


def outputs(requests):
    return [request.output_ids for request in requests]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_family_says_what_it_says_without_drafts(tmp_path, family, shape):
    checkpoint = make_checkpoint(tmp_path, FAMILIES[family])
    rng = random.Random(3)
    policy = Always(shape)
    requests, expected = speculate(checkpoint, [random_request(rng) for _ in range(8)], policy)
    assert outputs(requests) == expected
    assert sum(policy.emitted) > 1.5 * len(policy.emitted), "the drafts were never right, so nothing was tested"


@pytest.mark.parametrize(("read_lag", "most_repeats"), [(0, 1), (1, 1), (2, 1), (0, 3), (1, 4)])
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"max_num_tokens": 13}, id="chunks of 13, one tree at most"),
        pytest.param({"num_blocks": 20}, id="blocks run out"),
        pytest.param({"num_blocks": 24, "max_num_tokens": 20, "block_size": 3}, id="both"),
        pytest.param({"block_size": 96, "num_blocks": 4}, id="one block per request"),
    ],
)
def test_batch_chunks_preemption_and_lag_change_nothing(checkpoint, limits, read_lag, most_repeats):
    rng = random.Random(11)
    wanted = [random_request(rng) for _ in range(14)]
    policy = Always(SHAPES[1], SHAPES[0], None)
    requests, expected = speculate(
        checkpoint, wanted, policy, read_lag=read_lag, most_repeats=most_repeats, **limits
    )  # fmt: skip
    assert outputs(requests) == expected
    assert policy.emitted


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_drafts_that_are_never_or_always_right(checkpoint, accuracy):
    prompt, params = [5, 99, 3], SamplingParams(max_tokens=24, ignore_eos=True)
    policy = Always(TreeShape(12, 1, 5))
    requests, expected = speculate(checkpoint, [(prompt, params)], policy, accuracy=accuracy)
    assert outputs(requests) == expected
    most = 6 if accuracy else 2  # a random node may be right by chance
    assert all(emitted <= most for emitted in policy.emitted)
    if accuracy:
        assert max(policy.emitted) == 6


def test_requests_that_do_not_want_drafts_get_none(checkpoint):
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    wanted = [([1, 2, 3], params, 0), ([4, 5, 6], replace(params, speculate=False), 0)]
    requests, expected = speculate(checkpoint, wanted, Always(SHAPES[0]), accuracy=1.0)
    assert outputs(requests) == expected
    first, second = (request.statistics.snapshot() for request in requests)
    assert first.num_accepted_tokens > 0
    assert first.num_emitted_tokens == second.num_emitted_tokens == 11  # the prefill's token is not counted
    assert second.num_drafts == 0
    assert second.accepted_length == 1.0


def test_end_tokens_and_limits_inside_an_accepted_run(checkpoint):
    free = alone(checkpoint, ([7, 7, 7], SamplingParams(max_tokens=20, ignore_eos=True)))
    for at in range(1, 8):
        stop_at = SamplingParams(max_tokens=20, stop_token_ids=(free[at],), ignore_eos=True)
        short = SamplingParams(max_tokens=at + 1, ignore_eos=True)
        requests, expected = speculate(
            checkpoint, [([7, 7, 7], stop_at), ([7, 7, 7], short)], Always(TreeShape(8, 1, 7)), accuracy=1.0
        )
        assert outputs(requests) == expected
        assert [request.finish_reason for request in requests] == ["stop", "length"]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_log_probabilities_inside_an_accepted_run_are_plain_decodings(checkpoint, tokenizer, temperature):
    params = SamplingParams(temperature=temperature, top_k=20, seed=4, max_tokens=24, ignore_eos=True, logprobs=3)
    plain = complete(checkpoint, tokenizer, params)
    drafted = complete(checkpoint, tokenizer, params, plain)
    assert drafted.speculation.num_accepted_tokens > 12
    assert drafted.token_ids == plain.token_ids
    assert len(drafted.logprobs) == 24
    for entry, expected in zip(drafted.logprobs, plain.logprobs, strict=True):
        assert entry.chosen == pytest.approx(expected.chosen, abs=1e-9)
        assert [token for token, _ in entry.top] == [token for token, _ in expected.top]
        assert [value for _, value in entry.top] == pytest.approx([value for _, value in expected.top], abs=1e-9)


def test_stop_strings_inside_an_accepted_run_end_the_text_where_they_do_without_drafts(checkpoint, tokenizer):
    free = complete(checkpoint, tokenizer, SamplingParams(max_tokens=20, ignore_eos=True))
    for at in range(1, 12):
        params = SamplingParams(max_tokens=20, ignore_eos=True, stop=(free.text[at : at + 2],))
        plain = complete(checkpoint, tokenizer, params)
        drafted = complete(checkpoint, tokenizer, params, free)
        assert (drafted.text, drafted.finish_reason) == (plain.text, plain.finish_reason)
        assert drafted.token_ids == plain.token_ids


def complete(checkpoint, tokenizer, params, known=None):
    """One completion; with `known`, runs of its tokens are drafted, all of them right."""
    drafts = {}
    if known is not None:
        drafts = {"drafter": Oracle([[7, 7, 7, *known.token_ids]], 1.0), "policy": Always(TreeShape(8, 1, 7))}
    engine = make_engine(checkpoint, **drafts)
    (completion,) = LLM(TextEngine(engine, tokenizer)).generate([7, 7, 7], params)[0].completions
    engine.scheduler.check()
    assert engine.scheduler.pool.num_free == engine.backend.limits.num_blocks
    return completion


@pytest.mark.parametrize(("per_row", "drafts"), [(0.0, True), (1.0, False)], ids=["rows are free", "rows are dear"])
def test_speculation_turns_itself_off_where_it_does_not_pay(checkpoint, per_row, drafts):
    """The same drafter, right every time, on machines where a step of 8 rows takes as long as one of 1, or 8 times."""
    shape = TreeShape(8, 1, 7)
    target = {(batch, rows): 0.01 + per_row * batch * rows for batch in (1, 4) for rows in (1, 8)}
    costs = CostTable(target, {(batch, 1, 7): 0.005 for batch in (1, 4)})
    policy = SpeculationPolicy(costs, (shape,), AcceptancePrior(), PLAN.max_num_tokens)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    requests, expected = speculate(checkpoint, [([5, 99, 3], params), ([4], params)], policy, accuracy=1.0)
    assert outputs(requests) == expected
    assert [request.statistics.snapshot().num_drafts > 0 for request in requests] == [drafts] * 2


def test_a_drafter_that_is_never_right_is_hardly_asked(checkpoint):
    """Where a step of 8 rows takes 1.4 times as long as one of 1: guesses pay at first, until acceptance is seen."""
    shape = TreeShape(8, 1, 7)
    costs = CostTable({(1, 1): 0.01, (1, 8): 0.014, (4, 1): 0.01, (4, 8): 0.014}, {(1, 1, 7): 0.001, (4, 1, 7): 0.001})
    policy = SpeculationPolicy(costs, (shape,), AcceptancePrior(), PLAN.max_num_tokens)
    params = SamplingParams(max_tokens=80, ignore_eos=True)
    (request,), (expected,) = speculate(checkpoint, [([5, 99, 3], params)], policy, accuracy=0.0)
    assert request.output_ids == expected
    counts = request.statistics.snapshot()
    assert 0 < counts.num_drafts < 20
    assert counts.num_steps > 60


def test_to_the_last_token_of_the_context(checkpoint):
    wanted = [([1] * 80, SamplingParams(max_tokens=None, ignore_eos=True)), ([2] * 95, SamplingParams(max_tokens=None))]
    requests, expected = speculate(checkpoint, wanted, Always(TreeShape(16, 1, 15)), accuracy=1.0)
    assert outputs(requests) == expected
    assert [len(output) for output in expected] == [16, 1]


@pytest.mark.parametrize("seed", range(6))
def test_cancelling_amid_drafts_frees_blocks_and_leaves_others_alone(checkpoint, seed):
    rng = random.Random(seed)
    wanted = [random_request(rng) for _ in range(6)]
    expected = [alone(checkpoint, request_params) for request_params in wanted]
    texts = [prompt + output for (prompt, *_), output in zip(wanted, expected, strict=True)]
    engine = make_engine(checkpoint, rng.randrange(3), drafter=Oracle(texts), policy=Always(SHAPES[1]), num_blocks=30)
    for request, output in zip(run(engine, wanted, cancel_at=rng.randrange(8), rng=rng), expected, strict=True):
        cancelled = request.finish_reason == "cancelled"
        assert request.output_ids == (output[: len(request.output_ids)] if cancelled else output)
