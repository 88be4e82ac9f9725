"""Sample and match: which path through a draft tree the target's own tokens take, once they are known everywhere."""

from typing import NamedTuple

import torch

from plugins.accept.batched import accept_batched
from plugins.accept.cuda import accept_cuda
from plugins.library import define, implement

define(
    "accept(Tensor tree_ids, Tensor parents, Tensor depths, Tensor drawn, Tensor(a!) token_ids, Tensor(b!) nodes, "
    "Tensor(c!) counts) -> ()"
)
implement("accept", "CPU", accept_batched)
implement("accept", "CUDA", accept_cuda)


class AcceptedPath(NamedTuple):
    """What B requests emit. Entries at and past `counts` are meaningless."""

    token_ids: torch.Tensor  # (B, K + 1) int64, in the order of the text
    nodes: torch.Tensor  # (B, K + 1) int64, the tree node whose logits chose each token; node 0 first
    counts: torch.Tensor  # (B,) int64, tokens emitted, 1 .. K + 1


def accept(
    tree_ids: torch.Tensor, parents: torch.Tensor, depths: torch.Tensor, drawn: torch.Tensor, depth: int
) -> AcceptedPath:
    """Walk down each tree from its root: emit the token drawn at a node, go on to its child that equals it.

    Example: in the tree of `plugins.tree_pack`, "the" is drawn at node 0, "cat" at node 1, "ran" at node 2 and "away"
    at node 5, which has no child: four tokens, nodes [0, 1, 2, 5].

    Args:
        tree_ids, parents, depths: (B, N) int64, as in `plugins.tree_pack.PackedTree`; a depth of 0 is no child. Of
            equal children of one node the first counts.
        drawn: (B, N) int64, the target's token at every node. Where it is negative, there is no child to go to.
        depth: K, of the deepest node.

    Raises:
        KernelError: on CUDA, trees of more than 64 nodes.
    """
    shape = (len(tree_ids), depth + 1)
    path = AcceptedPath(drawn.new_empty(shape), drawn.new_empty(shape), drawn.new_empty(shape[0]))
    torch.ops.enginewright.accept.default(tree_ids, parents, depths, drawn, *path)
    return path
