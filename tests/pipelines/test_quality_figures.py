"""The figures that gate an engine: right on worked examples, and never satisfied by a broken engine."""

import math

import pytest
import torch

from runtime.errors import EnginewrightError
from runtime.quality import TopLogits, compare_logits, full_kl, token_nll

P = torch.tensor([0.5, 0.25, 0.125, 0.125])
Q = torch.tensor([0.25, 0.5, 0.0625, 0.1875])


def random_logits(seed, num_prompts=3, num_rows=5, vocab=40):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num_prompts, num_rows, vocab, generator=generator)


def test_worked_example():
    # Top 2 and a bucket: (1/2, 1/4, 1/4) against (1/4, 1/2, 1/4) = 1/2 ln 2 - 1/4 ln 2 + 0.
    top = TopLogits.from_logits([P.log()[None]], top_k=2)
    figures = compare_logits(top, [Q.log()[None]])
    assert figures.mean_kl_nats == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert figures.max_logit_diff == pytest.approx(math.log(2), rel=1e-6)
    assert figures.greedy_agreement == 0
    assert (figures.near_tie_flips, figures.hard_flips) == (1, 0)
    assert figures.max_flip_margin == pytest.approx(math.log(2), rel=1e-6)
    # The bucket hides how the rest is shared out: the full divergence is larger by 1/8 ln 2 + 1/8 ln(2/3).
    full = float(full_kl(P.log(), Q.log()))
    assert full - figures.mean_kl_nats == pytest.approx(math.log(4 / 3) / 8, rel=1e-5)


def test_bucketed_kl_bounds_the_full_kl_from_below_and_meets_it_at_k_equal_v():
    expected, logits = random_logits(0), random_logits(1)
    full = full_kl(expected, logits)
    for top_k in (2, 8, 39):
        figures = compare_logits(TopLogits.from_logits(expected, top_k), logits)
        assert 0 < figures.mean_kl_nats <= float(full.mean())
    whole = compare_logits(TopLogits.from_logits(expected, 40), logits)
    assert whole.mean_kl_nats == pytest.approx(float(full.mean()), rel=1e-9)
    assert whole.max_kl_nats == pytest.approx(float(full.max()), rel=1e-9)


def test_equal_logits_have_no_error_even_where_one_token_takes_all():
    logits = random_logits(2)
    logits[0, 0, 7] = 1e4
    figures = compare_logits(TopLogits.from_logits(logits, 4), logits)
    assert figures.max_logit_diff == figures.max_flip_margin == 0
    assert abs(figures.max_kl_nats) < 1e-12
    assert figures.greedy_agreement == 1


def test_flips_are_sorted_by_the_margin_against_the_tie_bound():
    expected = torch.tensor([[[3.0, 2.9, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]]])
    logits = expected.clone()
    logits[0, 0, 1] = 3.1
    logits[0, 1, 1] = 3.1
    top = TopLogits.from_logits(expected, 3)
    figures = compare_logits(top, logits, tie_bound=0.2)
    assert (figures.near_tie_flips, figures.hard_flips) == (1, 1)
    assert figures.greedy_agreement == pytest.approx(1 / 3)
    assert figures.max_flip_margin == pytest.approx(2.0)
    assert compare_logits(top, logits).hard_flips == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_unusable_logit_fails(value):
    logits = random_logits(3)
    top = TopLogits.from_logits(logits, 4)
    broken = logits.clone()
    broken[2, 4, 39] = value
    with pytest.raises(EnginewrightError, match="prompt 2, position 4"):
        compare_logits(top, broken)
    with pytest.raises(EnginewrightError, match="prompt 2, position 4"):
        TopLogits.from_logits(broken, 4)
    with pytest.raises(EnginewrightError, match="NaN or infinite"):
        token_nll(broken[2], torch.zeros(5))


def test_missing_surplus_and_misshapen_logits_fail():
    logits = random_logits(4)
    top = TopLogits.from_logits(logits, 4)
    for wrong in (logits[:2], torch.cat([logits, logits[:1]]), logits[:, :4]):
        with pytest.raises(EnginewrightError, match="reference has"):
            compare_logits(top, wrong)
