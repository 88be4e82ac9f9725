"""Rules hold at every node of every draft tree: on fp64 models output with rules equals plain decoding's."""

import random
from dataclasses import replace

import pytest

from plugins.sample import sample
from runtime.backends import device_state
from runtime.errors import EnginewrightError
from runtime.sampling import SamplingParams, StructuredOutput
from runtime.sampling_rules.grammar import GrammarCompiler
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always, Oracle
from tests.runtime.test_engine import GREEDY, alone, random_request, run
from tests.runtime.test_speculation import SHAPES, outputs, speculate
from tests.runtime.tiny import EOS, make_engine

SCHEMAS = [
    StructuredOutput(),
    StructuredOutput.from_schema({"type": "array", "items": {"enum": ["yes", "no", 7, None]}, "maxItems": 3}),
]


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return GrammarCompiler(tokenizer)


def random_rules(rng, grammars):
    """A request with one rule or several; every fourth has a grammar, every eighth none."""
    prompt, params, sample_index = random_request(rng)
    if rng.random() < 0.125:
        return prompt, params, sample_index
    params = replace(
        params,
        logit_bias={rng.randrange(260): rng.uniform(-9, 9) for _ in range(rng.choice([0, 20]))},
        repetition_penalty=rng.choice([1.0, 1.4, 0.6]),
        frequency_penalty=rng.choice([0.0, 0.7, -0.3]),
        presence_penalty=rng.choice([0.0, 1.5]),
        min_tokens=rng.randint(0, params.max_tokens),
    )
    if rng.random() < 0.75:
        return prompt, params, sample_index
    structured = rng.choice(SCHEMAS)
    params = replace(params, structured=structured, ignore_eos=False)
    return prompt, params, sample_index, "", grammars.compile(structured)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("read_lag", [0, 2])
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"max_num_tokens": 13}, id="chunks of 13"),
        pytest.param({"most_repeats": 4}, id="up to 4 passes a step"),
        pytest.param({"num_blocks": 24, "max_num_tokens": 36, "block_size": 3}, id="blocks run out"),
    ],
)
def test_output_with_rules_is_the_same_with_drafts(checkpoint, grammars, limits, read_lag, shape):
    rng = random.Random(5)
    wanted = [random_rules(rng, grammars) for _ in range(14)]
    assert {one[1].temperature > 0 for one in wanted if one[1].structured} == {True, False}
    policy = Always(shape, SHAPES[0], None)
    requests, expected = speculate(checkpoint, wanted, policy, read_lag=read_lag, **limits)
    assert outputs(requests) == expected
    assert any(emitted > len(SHAPES) for emitted in policy.emitted)
    if "num_blocks" in limits:
        assert any(request.num_preemptions for request in requests if request.rules)


def test_drafts_of_texts_with_rules_are_accepted_whole(checkpoint, grammars):
    structured = SCHEMAS[0]
    params = SamplingParams(max_tokens=24, structured=structured, presence_penalty=1.0, min_tokens=9)
    wanted = [([5, 99, 3], params, 0, "", grammars.compile(structured))]
    policy = Always(replace(SHAPES[1], num_beams=1))
    requests, expected = speculate(checkpoint, wanted, policy, accuracy=1.0)
    assert outputs(requests) == expected
    assert max(policy.emitted) == 6


def test_rules_change_what_they_must(checkpoint):
    free = alone(checkpoint, ([7, 7, 7], GREEDY))
    banned = replace(GREEDY, logit_bias={free[0]: -100.0})
    assert alone(checkpoint, ([7, 7, 7], banned))[0] != free[0]
    forced = replace(GREEDY, logit_bias={42: 100.0})
    assert set(alone(checkpoint, ([7, 7, 7], forced))) == {42}
    never_twice = replace(forced, frequency_penalty=2.0, logit_bias={42: 9.0, 43: 8.0}, presence_penalty=2.0)
    assert {42, 43} <= set(alone(checkpoint, ([7, 7, 7], never_twice)))


def test_no_end_token_comes_before_min_tokens(checkpoint):
    ending = SamplingParams(max_tokens=12, logit_bias={EOS: 100.0}, min_tokens=7)
    text = alone(checkpoint, ([7, 7, 7], ending))
    assert len(text) == 8
    assert text.index(EOS) == 7


def test_a_step_with_rules_is_read_at_once_and_others_late(checkpoint):
    engine = make_engine(checkpoint, read_lag=2)
    engine.add([1, 2, 3], replace(GREEDY, presence_penalty=1.0, max_tokens=3))
    assert [len(engine.step()) for _ in range(3)] == [1, 1, 1]
    engine.add([1, 2, 3], replace(GREEDY, max_tokens=4))
    assert [len(engine.step()) for _ in range(3)] == [0, 0, 1]


def test_a_step_that_fails_amid_a_walk_is_repeated_with_the_same_text(checkpoint, grammars, monkeypatch):
    params = SamplingParams(max_tokens=24, structured=SCHEMAS[0], frequency_penalty=0.5)
    wanted = ([5, 99, 3], params, 0, "", grammars.compile(SCHEMAS[0]))
    expected = alone(checkpoint, wanted)
    drafter = Oracle([wanted[0] + expected], accuracy=1.0)
    engine = make_engine(checkpoint, drafter=drafter, policy=Always(TreeShape(6, 1, 5)))
    request = engine.add(*wanted)
    engine.step()
    calls = []

    def fails_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("device lost")
        return sample(*args)

    monkeypatch.setattr(device_state, "sample", fails_at_the_third)
    with pytest.raises(RuntimeError, match="device lost"):
        engine.step()
    while engine.has_work:
        engine.step()
    assert request.output_ids == expected


@pytest.mark.parametrize("token_id", [-1, 260])
def test_a_bias_of_an_unknown_token_is_refused_at_once(checkpoint, token_id):
    engine = make_engine(checkpoint)
    with pytest.raises(EnginewrightError, match=f"logit_bias names token {token_id}; this model's tokens are 0 to 259"):
        engine.add([1], replace(GREEDY, logit_bias={token_id: 1.0}))
    assert not engine.has_work
    run(engine, [([1], GREEDY)])
