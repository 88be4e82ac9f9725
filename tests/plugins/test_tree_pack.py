"""Tree packing against the oracle, and the worked example of its docstring."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.tree_pack import tree_pack
from plugins.tree_pack.reference import tree_pack_reference

SEE, THE, A, CAT, DOG, SAT, RAN = range(10, 17)


def bits(nodes: set[int]) -> int:
    value = sum(1 << node for node in nodes)
    return value - 2**64 if value >= 2**63 else value


def example(num_nodes: int):
    return tree_pack(
        torch.tensor([[THE, A, CAT, DOG, SAT, RAN]]),
        torch.tensor([[-1, -1, 0, 0, 2, 2]]),
        torch.tensor([[-0.1, -torch.inf, -0.5, -1.2, -1.0, -1.4]]),
        torch.tensor([SEE]),
        num_nodes,
    )


def test_the_worked_example_packs_as_documented():
    tree = example(7)
    assert tree.token_ids.tolist() == [[SEE, THE, CAT, DOG, SAT, RAN, -1]]
    assert tree.parents.tolist() == [[0, 0, 1, 1, 2, 2, 0]]
    assert tree.depths.tolist() == [[0, 1, 2, 2, 3, 3, 0]]
    seen = [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 2, 4}, {0, 1, 2, 5}, {0, 6}]
    assert tree.ancestors.tolist() == [[bits(nodes) for nodes in seen]]
    assert example(4).token_ids.tolist() == [[SEE, THE, CAT, SAT]]


@st.composite
def candidate_trees(draw):
    """(ids, parents, scores) of one request; scores are coarse, so that ties occur."""
    ids, parents, scores, previous = [], [], [], []
    for depth in range(draw(st.integers(1, 5))):
        layer = []
        for _ in range(draw(st.integers(1, 8))):
            parent = -1 if depth == 0 else draw(st.sampled_from(previous))
            above = 0.0 if parent < 0 else scores[parent]
            step = draw(st.sampled_from([0.0, 0.5, 1.0, float("inf")]))
            layer.append(len(ids))
            ids.append(draw(st.integers(0, 99)))
            parents.append(parent)
            scores.append(above - step)
        previous = layer
    return ids, parents, scores


@settings(max_examples=150, deadline=None)
@given(st.lists(candidate_trees(), min_size=1, max_size=3), st.sampled_from([2, 3, 7, 12, 33, 64]))
def test_every_request_of_a_batch_packs_as_it_would_alone(requests, num_nodes):
    width = max(len(ids) for ids, _, _ in requests)
    rows = [
        (ids + [0] * (width - len(ids)), parents + [-1] * (width - len(ids)),
         scores + [-float("inf")] * (width - len(ids)))
        for ids, parents, scores in requests
    ]  # fmt: skip
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    roots = torch.arange(100, 100 + len(rows))
    tree = tree_pack(*columns, roots, num_nodes)
    for row, (ids, parents, scores) in enumerate(requests):
        expected = tree_pack_reference(ids, parents, scores, 100 + row, num_nodes)
        assert tree.token_ids[row].tolist() == expected[0]
        assert tree.parents[row].tolist() == expected[1]
        assert tree.depths[row].tolist() == expected[2]
        assert tree.ancestors[row].tolist() == [bits(nodes) for nodes in expected[3]]


def test_sizes_that_ancestor_bits_cannot_hold_are_refused():
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="65 nodes"):
        tree_pack(one, one - 1, one.float(), one[0], 65)
