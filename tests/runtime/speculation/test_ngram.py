"""N-gram drafts against a search in plain Python."""

import random

import pytest

from runtime.errors import EnginewrightError
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.tree import TreeShape
from tests.runtime.speculation.contexts import check_tree, make_context, paths


def lookup(text, min_n, max_n, depth):
    """The longest n-gram that recurs, then the most tokens after it up to `depth`, then the latest."""
    for n in range(max_n, min_n - 1, -1):
        ends = [end for end in range(n, len(text)) if text[end - n : end] == text[len(text) - n :]]
        if ends:
            best = max(ends, key=lambda end: (min(len(text) - end, depth), end))
            return text[best : best + depth]
    return []


def drafted(tree):
    return [[token for token in row[1:] if token >= 0] for row in tree.token_ids.tolist()]


def test_worked_example():
    a, b, c, d, e = range(5)
    context = make_context([[a, b, c, d, a, b, e, a, b]])
    tree = NgramDrafter(min_n=2, max_n=3).propose(context, TreeShape(num_nodes=4, num_beams=1, depth=2))
    assert drafted(tree) == [[e, a]]
    tree = NgramDrafter(min_n=2, max_n=3).propose(context, TreeShape(num_nodes=5, num_beams=2, depth=2))
    assert paths(tree) == {(e,), (e, a), (c,), (c, d)}


@pytest.mark.parametrize("seed", range(8))
def test_proposes_what_a_search_finds(seed):
    rng = random.Random(seed)
    texts = [[rng.randrange(3) for _ in range(rng.randrange(1, 40))] for _ in range(9)]
    min_n, depth = rng.randrange(1, 3), rng.randrange(1, 8)
    max_n = min_n + rng.randrange(3)
    context = make_context(texts, history_len=64)
    tree = NgramDrafter(min_n, max_n).propose(context, TreeShape(num_nodes=8, num_beams=1, depth=depth))
    check_tree(tree, context.root_ids, 8)
    assert drafted(tree) == [lookup(text, min_n, max_n, depth) for text in texts]


def test_a_loop_is_drafted_to_the_full_depth():
    tree = NgramDrafter().propose(make_context([[7, 8] * 6]), TreeShape(num_nodes=6, num_beams=1, depth=5))
    assert drafted(tree) == [[7, 8, 7, 8, 7]]


def test_history_shorter_than_the_n_gram_proposes_nothing():
    context = make_context([[5], [9]])
    tree = NgramDrafter(min_n=1, max_n=4).propose(context, TreeShape(num_nodes=3, num_beams=1, depth=2))
    check_tree(tree, context.root_ids, 3)
    assert drafted(tree) == [[], []]


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_holds_the_continuations_of_the_best_places(seed):
    rng = random.Random(seed)
    texts = [[rng.randrange(3) for _ in range(rng.randrange(6, 40))] for _ in range(5)]
    context = make_context(texts)
    tree = NgramDrafter(1, 2).propose(context, TreeShape(num_nodes=10, num_beams=3, depth=3))
    check_tree(tree, context.root_ids, 10)
    for request, text in enumerate(texts):
        ends = [
            (n, min(len(text) - end, 3), end)
            for end in range(1, len(text))
            for n in [2 if end > 1 and text[end - 2 : end] == text[-2:] else int(text[end - 1] == text[-1])]
            if n
        ]
        places = [end for _, _, end in sorted(ends)[-3:]]
        expected = {tuple(text[end:stop]) for end in places for stop in range(end + 1, min(end + 3, len(text)) + 1)}
        assert paths(tree, request) == expected  # 9 nodes hold them all


@pytest.mark.parametrize(("min_n", "max_n"), [(0, 3), (3, 2), (2, 17)])
def test_bounds_are_named(min_n, max_n):
    with pytest.raises(EnginewrightError, match="1 <= min_n <= max_n <= 16"):
        NgramDrafter(min_n, max_n)
