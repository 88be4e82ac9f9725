"""The draft tree from a drafter's candidates: the best nodes by score, in order, with parents, depths and ancestors."""

from typing import NamedTuple

import torch

from plugins.library import define, implement
from plugins.tree_pack.batched import tree_pack_batched
from plugins.tree_pack.cuda import tree_pack_cuda

define(
    "tree_pack(Tensor candidate_ids, Tensor candidate_parents, Tensor scores, Tensor root_ids, Tensor(a!) token_ids, "
    "Tensor(b!) parents, Tensor(c!) depths, Tensor(d!) ancestors) -> ()"
)
implement("tree_pack", "CPU", tree_pack_batched)
implement("tree_pack", "CUDA", tree_pack_cuda)


class PackedTree(NamedTuple):
    """Per request the root, then the kept candidates in their order, then padding. All (B, N) int64."""

    token_ids: torch.Tensor  # -1 where padding
    parents: torch.Tensor  # index of each node's parent; 0 for the root and padding
    depths: torch.Tensor  # edges from the root; 0 for padding
    ancestors: torch.Tensor  # bit j of node i: i sees j, itself included; padding sees the root and itself


def tree_pack(
    candidate_ids: torch.Tensor,
    candidate_parents: torch.Tensor,
    scores: torch.Tensor,
    root_ids: torch.Tensor,
    num_nodes: int,
) -> PackedTree:
    """Keep the N - 1 best candidates of each request and pack them behind its root.

    Candidates are the nodes of a prefix tree, parents before children, and no child scores above its parent. Ties go
    to the earlier candidate, so what is kept is closed under ancestors. A score of -inf marks no candidate.

    Example: after the root "see", candidates by depth, N = 7 (`parents` index the candidates, -1 is the root):

        candidate    0     1     2     3     4     5
        ids          the   a     cat   dog   sat   ran
        parents     -1    -1     0     0     2     2
        scores      -0.1  -inf  -0.5  -1.2  -1.0  -1.4

    packs to the tree of runtime/speculation/tree.py:

        node         0     1     2     3     4     5     6
        token_ids   see   the   cat   dog   sat   ran   -1
        parents      0     0     1     1     2     2     0
        depths       0     1     2     2     3     3     0
        ancestors   {0}   {0,1} {0,1,2} {0,1,3} {0,1,2,4} {0,1,2,5} {0,6}

    With N = 4 the best three stay: the, cat, sat.

    Args:
        candidate_ids: (B, C) int64.
        candidate_parents: (B, C) int64, index into the request's candidates, -1 for a child of the root.
        scores: (B, C) float, cumulative log-probabilities.
        root_ids: (B,) int64.
        num_nodes: N, 2 to 64.

    Raises:
        ValueError: N is out of its bounds: ancestors are the bits of one int64.
    """
    if not 2 <= num_nodes <= 64:
        raise ValueError(f"a tree of {num_nodes} nodes; 2 to 64 can be packed")
    tree = PackedTree(*(root_ids.new_empty(len(root_ids), num_nodes) for _ in range(4)))
    torch.ops.enginewright.tree_pack.default(candidate_ids, candidate_parents, scores, root_ids, *tree)
    return tree
