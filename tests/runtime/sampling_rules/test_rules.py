"""Each rule against its formula worked out in Python floats."""

import math
import random
from collections import Counter

import pytest
import torch

from runtime.sampling import SamplingParams
from runtime.sampling_rules.rules import TextRules
from runtime.sampling_rules.walk import adjust

VOCAB_SIZE, STOP = 12, 11
LOGITS = [math.sin(3 * token) * 2 for token in range(VOCAB_SIZE)]


def rules(params, prompt=(1, 2, 3), output=()):
    return TextRules(params, list(prompt), list(output), frozenset([-1, STOP, 10**6]), None)


def by_hand(params, prompt, output):
    """vLLM's order: bias, repetition, frequency and presence, then the mask."""
    counts, logits = Counter(output), list(LOGITS)
    for token in range(VOCAB_SIZE):
        logits[token] += params.logit_bias.get(token, 0.0)
        if token in {*prompt, *output}:
            penalty = params.repetition_penalty
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        logits[token] -= params.frequency_penalty * counts[token]
        logits[token] -= params.presence_penalty * (counts[token] > 0)
    if len(output) < params.min_tokens:
        logits[STOP] = -math.inf
    return logits


@pytest.mark.parametrize("seed", range(20))
def test_rules_follow_their_formulas_one_by_one_and_together(seed):
    rng = random.Random(seed)
    params = SamplingParams(
        logit_bias={rng.randrange(VOCAB_SIZE): rng.uniform(-100, 100) for _ in range(rng.choice([0, 3]))},
        repetition_penalty=rng.choice([1.0, 1.3, 0.7]),
        frequency_penalty=rng.choice([0.0, 0.5, -2.0]),
        presence_penalty=rng.choice([0.0, 1.1, -0.4]),
        min_tokens=rng.choice([0, 3]),
    )
    prompt, output, path = ([rng.randrange(STOP) for _ in range(rng.randint(0, 4))] for _ in range(3))
    found = rules(params, prompt, output).apply(torch.tensor(LOGITS, dtype=torch.float64), path)
    expected = torch.tensor(by_hand(params, prompt, output + path), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_end_tokens_come_where_nothing_else_may():
    logits = torch.full((VOCAB_SIZE,), -math.inf)
    logits[STOP] = 1.0
    assert torch.equal(rules(SamplingParams(min_tokens=5)).apply(logits, []), logits)


def test_nothing_changes_past_an_end_token():
    logits = torch.tensor(LOGITS)
    assert torch.equal(rules(SamplingParams(presence_penalty=1.0)).apply(logits, [4, STOP, 4]), logits)


def test_only_rows_that_ask_and_go_on_are_adjusted_and_none_in_place():
    raw = torch.tensor([LOGITS] * 3, dtype=torch.bfloat16)
    before = raw.clone()
    biased = {row: rules(SamplingParams(logit_bias={0: 0.001})) for row in (1, 2)}
    adjusted = adjust(raw, biased, torch.tensor([True, True, False]), [torch.tensor([4, 4, 4])])
    assert torch.equal(raw, before)
    assert torch.equal(adjusted[[0, 2]], raw[[0, 2]].float())
    assert adjusted[1, 0] == raw[1, 0].float() + 0.001  # which bfloat16 would have lost at most values


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"])
def test_parameters_that_change_nothing_make_no_rules(name):
    neutral = {"logit_bias": {}, "repetition_penalty": 1.0}.get(name, 0.0)
    assert not SamplingParams(**{name: neutral}).has_rules
    assert SamplingParams(**{name: {3: 1.0} if name == "logit_bias" else 0.5}).has_rules
