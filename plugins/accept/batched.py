"""The walk in vectorised torch, one depth at a time for all requests."""

import torch


def accept_batched(
    tree_ids: torch.Tensor,
    parents: torch.Tensor,
    depths: torch.Tensor,
    drawn: torch.Tensor,
    token_ids: torch.Tensor,
    nodes: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    node = drawn.new_zeros(len(drawn))
    alive = torch.ones_like(node, dtype=torch.bool)
    counts.zero_()
    for level in range(token_ids.shape[1]):
        token = drawn.gather(1, node.unsqueeze(1))
        token_ids[:, level] = token.squeeze(1)
        nodes[:, level] = node
        counts += alive
        is_match = (tree_ids == token) & (parents == node.unsqueeze(1)) & (depths > 0)
        alive &= is_match.any(dim=1)
        node = torch.where(alive, is_match.int().argmax(dim=1), node)
