"""The speculation benchmark: what it counts, on a tiny engine whose drafter is always right."""

import pytest

from runtime.benchmark.speculation import (
    PLAIN,
    KindPrompt,
    SpeculationSample,
    run_speculation,
    summarise_speculation,
)
from runtime.sampling import SamplingParams
from runtime.speculation.loading import Drafting
from runtime.speculation.policy import FixedPolicy
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Oracle
from tests.runtime.test_engine import alone
from tests.runtime.tiny import make_engine


def test_counts_tokens_and_steps_of_each_drafter_on_each_prompt(checkpoint):
    prompts = [KindPrompt("code", [1, 2, 3]), KindPrompt("prose", [7, 7])]
    texts = [prompt + alone(checkpoint, (prompt, SamplingParams(max_tokens=13))) for _, prompt in prompts]
    engine = make_engine(checkpoint)
    draftings = {"oracle": Drafting(Oracle(texts, accuracy=1.0), FixedPolicy(TreeShape(4, 1, 3)))}
    samples = list(run_speculation(engine, draftings, prompts, 13, 2, lambda fraction, text: None))
    assert [(s.drafting, s.prompt, s.repeat) for s in samples] == [
        (name, prompt, repeat) for repeat in range(2) for prompt in range(2) for name in (PLAIN, "oracle")
    ]
    for sample in samples:
        assert sample.num_tokens == sample.num_equal == len(texts[sample.prompt]) - len(prompts[sample.prompt][1]) - 1
        assert sample.num_steps == sample.num_tokens if sample.drafting == PLAIN else sample.num_steps < 12
    assert engine.backend.drafter is None


def test_a_summary_pairs_each_run_with_plain_decoding_of_the_same_prompt_and_repeat():
    samples = [
        SpeculationSample(PLAIN, "code", 0, 0, 100, 100, 100, 2.0),
        SpeculationSample("ngram", "code", 0, 0, 100, 50, 100, 1.0),
        SpeculationSample(PLAIN, "prose", 1, 0, 50, 50, 50, 1.0),
        SpeculationSample("ngram", "prose", 1, 0, 100, 80, 40, 4.0),
    ]
    rows = {(row.drafting, row.kind): row for row in summarise_speculation(samples)}
    assert rows["ngram", "code"].ratio == pytest.approx(2.0)
    assert rows["ngram", "prose"].ratio == pytest.approx(0.5)
    every = rows["ngram", "all"]
    assert (every.num_prompts, every.ratio) == (2, pytest.approx(1.25))
    assert every.tokens_per_s == pytest.approx(200 / 5.0)
    assert every.accepted_length == pytest.approx(200 / 130)
    assert every.equal_share == pytest.approx(140 / 200)
    assert rows[PLAIN, "all"].ratio == 1.0
