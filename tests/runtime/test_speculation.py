"""Speculation is lossless: on fp64 models every output equals plain decoding's, whatever is drafted."""

import random
from dataclasses import replace

import pytest

from runtime.sampling import SamplingParams
from runtime.spec import RopeScaling
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always, Oracle
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.tiny import SPEC, make_checkpoint, make_engine

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
