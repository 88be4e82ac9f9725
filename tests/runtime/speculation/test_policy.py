"""Choices of a tree on made-up costs."""

import pytest

from runtime.errors import EnginewrightError
from runtime.speculation.cost_table import CostTable
from runtime.speculation.policy import (
    CHAINS,
    SMALL_TREES,
    TREES,
    AcceptancePrior,
    FixedPolicy,
    SpeculationPolicy,
    parse_speculation,
)
from runtime.speculation.tree import TreeShape

SHAPES = (*CHAINS, *SMALL_TREES, *TREES)
# The wider the tree, the longer: what a trained head is like.
PRIOR = AcceptancePrior({shape: 1.0 + 0.4 * (shape.num_nodes * shape.num_beams) ** 0.2 for shape in SHAPES})
WIDEST = TreeShape(64, 32, 5)


def table(per_row, draft=0.01, fixed=1.0):
    """A step costs `fixed` and `per_row` for each token; a draft `draft`."""
    target = {(batch, rows): fixed + per_row * batch * rows for batch in (1, 2, 4, 8, 16) for rows in (1, 12, 32, 64)}
    drafts = {(batch, shape.num_beams, shape.depth): draft for batch in (1, 2, 4, 8, 16) for shape in SHAPES}
    return CostTable(target, drafts)


def make_policy(costs, prior=PRIOR, max_num_tokens=10**6, **settings):
    return SpeculationPolicy(costs, SHAPES, prior, max_num_tokens, **settings)


def run(policy, num_steps, emitted, num_decoding=1):
    """Steps of `num_decoding` requests that emit `emitted(shape)` tokens each; return the choices."""
    choices = []
    for _ in range(num_steps):
        shape = policy.choose(num_decoding)
        choices.append(shape)
        if shape is not None:
            policy.observe(shape, num_decoding, round(num_decoding * emitted(shape)))
    return choices


def test_rows_that_are_free_buy_the_widest_tree():
    assert make_policy(table(per_row=0.0)).choose(1) == WIDEST


def test_rows_that_are_expensive_switch_speculation_off_for_good():
    policy = make_policy(table(per_row=1.0, fixed=0.0), probe_interval=4)
    assert run(policy, 100, lambda shape: 1) == [None] * 100


def test_speculation_turns_off_as_the_batch_grows():
    policy = make_policy(table(per_row=0.02))
    chosen = {num_decoding: policy.choose(num_decoding) for num_decoding in (1, 2, 4, 8, 16, 64)}
    assert chosen[1] is not None
    assert chosen[64] is None
    sizes = [0 if shape is None else shape.num_nodes for shape in chosen.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_a_drafter_that_never_hits_is_turned_off_and_probed_ever_more_rarely():
    costs = table(per_row=0.01, draft=0.25)
    policy = make_policy(costs, probe_interval=20, max_probe_interval=80, probe_steps=3)
    choices = run(policy, 600, lambda shape: 1)
    first_off = choices.index(None)
    assert 1 <= first_off <= 20
    gaps, gap, tries = [], 0, 0
    for shape in choices[first_off:]:
        if shape is None:
            gap += 1
        else:
            tries += 1
            gaps += [gap] if gap else []
            gap = 0
    assert gaps[:4] == [20, 40, 80, 80]
    assert tries == 3 * len(gaps)


def test_a_drafter_that_begins_to_hit_comes_back():
    policy = make_policy(table(per_row=0.01, draft=0.25), probe_interval=20)
    assert run(policy, 30, lambda shape: 1)[-1] is None
    choices = run(policy, 80, lambda shape: shape.depth + 1)
    assert None not in choices[-20:]


def test_a_drafter_that_nothing_is_known_about_is_tried_and_kept_while_it_pays():
    choices = run(make_policy(table(per_row=0.01), AcceptancePrior()), 100, lambda shape: 3)
    assert None not in choices


def test_observations_correct_the_prior_in_their_own_direction():
    for emitted, direction in ((1, -1), (5, 1)):
        policy = make_policy(table(per_row=0.0))
        before = policy.expected_length(WIDEST)
        for _ in range(3):
            policy.observe(WIDEST, 4, 4 * emitted)
        assert (policy.expected_length(WIDEST) - before) * direction > 0
        assert 1.0 <= policy.expected_length(WIDEST) <= WIDEST.depth + 1


def test_a_shape_that_disappoints_gives_way_to_another():
    policy = make_policy(table(per_row=0.0))
    choices = run(policy, 60, lambda shape: 1 if shape == WIDEST else 3)
    assert choices[0] == WIDEST
    assert choices[-1] not in (WIDEST, None)


def test_trees_between_measured_ones_are_expected_to_give_what_lies_between():
    prior = AcceptancePrior({TreeShape(8, 4, 4): 2.0, TreeShape(32, 4, 4): 3.0, TreeShape(64, 4, 5): 9.0}, (0.5,))
    assert prior.accepted_length(TreeShape(16, 4, 4)) == 2.5
    assert prior.accepted_length(TreeShape(32, 4, 4)) == 3.0
    for unknown in (TreeShape(64, 4, 4), TreeShape(16, 3, 4)):
        assert prior.accepted_length(unknown) == 1.9375


def test_equal_inputs_give_equal_choices():
    runs = [run(make_policy(table(per_row=0.01)), 200, lambda shape: 1 + shape.depth % 3) for _ in range(2)]
    assert runs[0] == runs[1]


def test_no_step_has_more_tokens_than_the_engine_takes():
    policy = make_policy(table(per_row=0.0), max_num_tokens=64)
    for num_decoding, most in ((1, 64), (4, 12), (16, 4)):
        assert policy.choose(num_decoding).num_nodes == most
    assert policy.choose(17) is None
    assert policy.choose(0) is None


def test_prior_by_depth_multiplies_and_its_last_rate_goes_on():
    prior = AcceptancePrior(acceptance=(0.5, 0.8))
    assert prior.accepted_length(TreeShape(8, 1, 3)) == pytest.approx(1 + 0.5 + 0.4 + 0.32)


def test_fixed_choices():
    shape = TreeShape(12, 4, 4)
    assert FixedPolicy(shape).choose(3) == shape
    assert FixedPolicy(None).choose(3) is None
    assert FixedPolicy(shape).choose(0) is None


@pytest.mark.parametrize(
    ("text", "expected"), [("off", "off"), ("auto", "auto"), ("12,4,4", TreeShape(12, 4, 4)), ("4, 1, 3", CHAINS[0])]
)
def test_speculation_is_parsed(text, expected):
    assert parse_speculation(text) == expected


@pytest.mark.parametrize("text", ["", "on", "12,4", "12,4,4,1", "12,x,4", "-12,4,4", "12,4,12", "65,4,4", "12,0,4"])
def test_other_words_and_trees_are_refused(text):
    with pytest.raises(EnginewrightError, match=r"not off, auto or a tree N,W,K|must be between"):
        parse_speculation(text)


@pytest.mark.parametrize(("rows_seconds", "gain"), [(0.011, 1.46), (0.034, 0.53)])
def test_worked_example(rows_seconds, gain):
    shape = TreeShape(12, 4, 4)
    costs = CostTable({(1, 1): 0.010, (1, 12): rows_seconds}, {(1, 4, 4): 0.002})
    policy = SpeculationPolicy(costs, [shape], AcceptancePrior({shape: 1.9}), max_num_tokens=64)
    assert policy.gain(shape, 1) == pytest.approx(gain, abs=0.01)
    assert policy.choose(1) == (shape if gain > 1 else None)
