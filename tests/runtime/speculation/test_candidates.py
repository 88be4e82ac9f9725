"""Merging what several drafters propose, against sets of paths."""

import random

import torch

from runtime.speculation.candidates import Candidates, concatenate, merge_equal, pack
from tests.runtime.speculation.contexts import check_tree, paths


def tensors(token_ids, parents, scores):
    return Candidates(torch.tensor([token_ids]), torch.tensor([parents]), torch.tensor([scores]))


def test_worked_example():
    the, cat, dog = range(3)
    apart = tensors([the, cat, the, dog], [-1, 0, -1, 2], [-0.1, -0.5, -0.3, -0.9])
    merged = merge_equal(apart, depth=2)
    assert merged.parents.tolist() == [[-1, 0, -1, 0]]
    torch.testing.assert_close(merged.scores, torch.tensor([[-0.1, -0.5, -torch.inf, -0.9]]))


def random_candidates(rng, num_candidates):
    """A forest whose scores fall from parent to child, equal siblings included."""
    token_ids, parents, scores, depths = [], [], [], []
    for _ in range(num_candidates):
        parent = rng.choice([-1, *(node for node, depth in enumerate(depths) if depth < 4)])
        token_ids.append(rng.randrange(3))
        parents.append(parent)
        scores.append((scores[parent] if parent >= 0 else 0.0) - rng.random())
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    return token_ids, parents, scores


def paths_of(token_ids, parents, scores):
    """Each path with its best score."""
    every, best = [], {}
    for token, parent, score in zip(token_ids, parents, scores, strict=True):
        every.append((*(every[parent] if parent >= 0 else ()), token))
        best[every[-1]] = max(score, best.get(every[-1], -torch.inf))
    return best


def test_union_has_every_path_once_with_its_best_score():
    for seed in range(20):
        rng = random.Random(seed)
        first, second = random_candidates(rng, rng.randrange(1, 12)), random_candidates(rng, rng.randrange(1, 12))
        expected = paths_of(*first)
        for path, score in paths_of(*second).items():
            expected[path] = max(score, expected.get(path, -torch.inf))
        merged = merge_equal(concatenate(tensors(*first), tensors(*second)), depth=4)
        live = [index for index, score in enumerate(merged.scores[0].tolist()) if score > -torch.inf]
        assert len(live) == len(expected)
        tree = pack(merged, torch.tensor([9]), num_nodes=25)
        check_tree(tree, torch.tensor([9]), 25)
        assert paths(tree) == set(expected)
        found = paths_of(*(tensor[0].tolist() for tensor in merged))
        for path, score in expected.items():
            assert abs(found[path] - score) < 1e-6
