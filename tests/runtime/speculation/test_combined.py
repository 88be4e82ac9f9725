"""Two drafters in one tree."""

import torch

from runtime.speculation.candidates import Candidates
from runtime.speculation.combined import CombinedDrafter
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.tree import TreeShape
from tests.runtime.speculation.contexts import check_tree, make_context, paths

CONTEXT = make_context([[1, 2, 3, 4, 1, 2], [5, 6, 7, 8, 9, 10]])


class Fixed:
    """Proposes 3, then 8 or 4, with chances of 0.5, 0.4 and 0.05."""

    name = "fixed"

    def __init__(self):
        self.caches = ["a cache"]
        self.followed = []

    def candidates(self, context, shape):
        rows = len(context.root_ids)
        token_ids, parents = torch.tensor([[3, 8, 4]]), torch.tensor([[-1, 0, 0]])
        scores = torch.log(torch.tensor([[0.5, 0.4, 0.05]]))
        return Candidates(token_ids.expand(rows, -1), parents.expand(rows, -1), scores.expand(rows, -1))

    def follow(self, batch):
        self.followed.append(batch)


def test_a_tree_has_the_best_nodes_of_both_and_no_path_twice():
    drafter = CombinedDrafter(Fixed(), NgramDrafter())
    tree = drafter.propose(CONTEXT, TreeShape(num_nodes=8, num_beams=2, depth=4))
    check_tree(tree, CONTEXT.root_ids, 8)
    lookup = {(3,), (3, 4), (3, 4, 1), (3, 4, 1, 2)}  # "1 2" was followed by "3 4 1 2"
    assert paths(tree, 0) == lookup | {(3, 8)}
    assert paths(tree, 1) == {(3,), (3, 8), (3, 4)}, "no n-gram recurs"


def test_a_path_of_both_has_its_better_score():
    # The look-up gives 3 a chance of 2/3, and "3 4" 2/4, where the other drafter gives that 0.05 and "3 8" 0.4.
    drafter = CombinedDrafter(Fixed(), NgramDrafter())
    tree = drafter.propose(CONTEXT, TreeShape(num_nodes=3, num_beams=1, depth=2))
    assert paths(tree, 0) == {(3,), (3, 4)}
    assert paths(tree, 1) == {(3,), (3, 8)}


def test_both_see_every_batch_and_both_caches_move():
    first, second = Fixed(), Fixed()
    drafter = CombinedDrafter(first, second)
    drafter.follow("a batch")
    assert first.followed == second.followed == ["a batch"]
    assert drafter.caches == ["a cache", "a cache"]
    assert drafter.name == "fixed+fixed"
