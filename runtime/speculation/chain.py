"""A draft tree that is one path, for drafters that propose a single continuation."""

import torch

from runtime.speculation.tree import DraftTree, root_only


def chain_tree(root_ids: torch.Tensor, tokens: torch.Tensor, num_nodes: int) -> DraftTree:
    """Make node i + 1 the token i of each chain; what follows a chain's first -1 is padding.

    Args:
        root_ids: (B,) int64.
        tokens: (B, K) int64, K < num_nodes, -1 from where a chain ends.
    """
    chain_len = tokens.shape[1]
    tree = root_only(root_ids, num_nodes)
    is_used = torch.zeros_like(tree.token_ids, dtype=torch.bool)
    is_used[:, 1 : chain_len + 1] = (tokens >= 0).cummin(dim=1).values
    nodes = torch.arange(num_nodes, device=root_ids.device)
    up_to = torch.bitwise_left_shift(torch.ones_like(nodes), nodes).cumsum(0)  # the bits of nodes 0 .. i
    padded = torch.nn.functional.pad(tokens, (1, num_nodes - chain_len - 1))
    return DraftTree(
        token_ids=torch.where(is_used, padded, tree.token_ids),
        parents=torch.where(is_used, nodes - 1, 0),
        depths=torch.where(is_used, nodes, 0),
        ancestors=torch.where(is_used, up_to, tree.ancestors),
    )
