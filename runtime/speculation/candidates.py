"""What drafters choose trees from: scored tokens with their parents, of one drafter or of several together."""

from typing import NamedTuple

import torch

from plugins.tree_pack import tree_pack
from runtime.speculation.tree import DraftTree


class Candidates(NamedTuple):
    """Per request C drafted tokens, parents before children. (B, C) each."""

    token_ids: torch.Tensor  # int64
    parents: torch.Tensor  # int64, index of a candidate, -1 for a child of the root
    scores: torch.Tensor  # float, cumulative log-probability, no child above its parent; -inf marks no candidate


def pack(candidates: Candidates, root_ids: torch.Tensor, num_nodes: int) -> DraftTree:
    """Make a tree of the best candidates; no two children of a node may be equal."""
    # Drafters repeat what is the same for all requests; a kernel reads rows that lie one after the other.
    token_ids, parents, scores = (part.contiguous() for part in candidates)
    return DraftTree(*tree_pack(token_ids, parents, scores, root_ids, num_nodes))


def concatenate(first: Candidates, second: Candidates) -> Candidates:
    """List the candidates of `first`, then those of `second`."""
    offset = first.token_ids.shape[1]
    moved = torch.where(second.parents >= 0, second.parents + offset, -1)
    return Candidates(
        torch.cat([first.token_ids, second.token_ids], dim=1),
        torch.cat([first.parents, moved], dim=1),
        torch.cat([first.scores, second.scores], dim=1),
    )


def merge_equal(candidates: Candidates, depth: int) -> Candidates:
    """Make one candidate of all that stand for the same path: the first of them, with the best of their scores.

    Example: the paths "the cat" and "the dog", drafted apart, share their first token (-1 is the root):

        candidate    0     1     2     3                   0     1     2     3
        token_ids   the   cat   the   dog     becomes     the   cat   the   dog
        parents     -1     0    -1     2                  -1     0    -1     0
        scores      -0.1  -0.5  -0.3  -0.9                -0.1  -0.5  -inf  -0.9

    depth: edges from the root to the deepest candidate, at most.
    """
    token_ids, parents, scores = candidates
    is_equal = _equal_paths(candidates, depth)
    first = is_equal.int().argmax(dim=2)  # of equal values, argmax finds the first
    is_first = first == torch.arange(token_ids.shape[1], device=first.device)
    best = torch.where(is_equal, scores.unsqueeze(1), -torch.inf).amax(dim=2)
    merged_parents = torch.where(parents >= 0, first.gather(1, parents.clamp(min=0)), -1)
    return Candidates(token_ids, merged_parents, torch.where(is_first, best, -torch.inf))


def _equal_paths(candidates: Candidates, depth: int) -> torch.Tensor:
    """(B, C, C) bool: do two candidates have equal tokens all the way up?"""
    token_ids, parents, _ = candidates
    num_candidates = token_ids.shape[1]
    below_root = parents < 0
    roots_agree = below_root.unsqueeze(2) & below_root.unsqueeze(1)
    neither_root = ~(below_root.unsqueeze(2) | below_root.unsqueeze(1))
    above = parents.clamp(min=0)
    rows = above.unsqueeze(2).expand(-1, -1, num_candidates)
    columns = above.unsqueeze(1).expand(-1, num_candidates, -1)
    same_token = token_ids.unsqueeze(2) == token_ids.unsqueeze(1)
    equal = same_token
    for _ in range(depth):
        above_equal = equal.gather(1, rows).gather(2, columns)
        equal = same_token & (roots_agree | neither_root & above_equal)
    return equal
