"""Sample and match: which path through a draft tree the target's own tokens take."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from runtime.speculation.tree import DraftTree


class Accepted(NamedTuple):
    """What B requests emit in one step. Entries at and past `counts` are meaningless."""

    token_ids: torch.Tensor  # (B, K + 1) int64, in the order of the text
    nodes: torch.Tensor  # (B, K + 1) int64, the tree node whose logits chose each token; node 0 first
    counts: torch.Tensor  # (B,) int64, tokens emitted, 1 .. K + 1


def accept(tree: DraftTree, depth: int, draw: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]) -> Accepted:
    """Walk down each tree from its root: emit the target's token at a node, go on to the child that equals it.

    Every emitted token is the target's own, whatever the tree holds; the drafter decides only how many there are.

    Example: the tree in `DraftTree`. The target says "the" at node 0, "cat" at node 1, "ran" at node 2 and "away" at
    node 5, which has no child: four tokens, nodes [0, 1, 2, 5].

    Args:
        depth: K, of the deepest node.
        draw: called with the nodes (B,) reached at each depth, the depth, and which requests (B,) bool got there;
            returns the target's tokens (B,). What it returns for the others is not used.
    """
    num_requests = len(tree.token_ids)
    node = tree.token_ids.new_zeros(num_requests)
    alive = torch.ones(num_requests, dtype=torch.bool, device=node.device)
    counts = torch.zeros_like(node)
    tokens, nodes = [], []
    for level in range(depth + 1):
        token = draw(node, level, alive)
        tokens.append(token)
        nodes.append(node)
        counts += alive
        is_match = (tree.token_ids == token.unsqueeze(1)) & (tree.parents == node.unsqueeze(1)) & (tree.depths > 0)
        alive = alive & is_match.any(dim=1)
        node = torch.where(alive, is_match.int().argmax(dim=1), node)
    return Accepted(torch.stack(tokens, dim=1), torch.stack(nodes, dim=1), counts)
