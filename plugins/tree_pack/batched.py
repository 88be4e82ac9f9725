"""Tree packing with sorts, gathers and pointer doubling: no loop over requests, no wait for the host, any device."""

import torch


def tree_pack_batched(
    candidate_ids: torch.Tensor,
    candidate_parents: torch.Tensor,
    scores: torch.Tensor,
    root_ids: torch.Tensor,
    token_ids: torch.Tensor,
    parents: torch.Tensor,
    depths: torch.Tensor,
    ancestors: torch.Tensor,
) -> None:
    num_candidates, num_nodes = scores.shape[1], token_ids.shape[1]
    kept = _best(scores, num_nodes - 1)  # padding is `num_candidates`
    is_node = kept < num_candidates
    kept_or_first = kept.clamp(max=num_candidates - 1)

    nodes = torch.arange(num_nodes, device=kept.device)
    node_of = kept.new_zeros(len(kept), num_candidates + 1)
    node_of.scatter_(1, kept, nodes[1:].expand_as(kept))
    above = candidate_parents.gather(1, kept_or_first)
    linked = is_node & (above >= 0)

    token_ids[:, 0] = root_ids
    token_ids[:, 1:] = candidate_ids.gather(1, kept_or_first).masked_fill_(~is_node, -1)
    parents[:, 0] = 0
    parents[:, 1:] = node_of.gather(1, above.clamp(min=0)).masked_fill_(~linked, 0)

    ancestors.copy_(torch.bitwise_left_shift(torch.ones_like(nodes), nodes).expand_as(ancestors))
    depths[:, 0] = 0
    depths[:, 1:] = is_node
    # Each round sees twice as far up: what a node has gathered, joined with what its furthest known ancestor has.
    above = parents.clone()
    for _ in range((num_nodes - 1).bit_length()):
        ancestors |= ancestors.gather(1, above)
        depths += depths.gather(1, above)
        above = above.gather(1, above)


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """(B, count) the best candidates in ascending order; the number of candidates stands where there is none."""
    num_candidates = scores.shape[1]
    ranked, order = torch.sort(scores, dim=1, descending=True, stable=True)
    order = order.masked_fill(ranked == -torch.inf, num_candidates)[:, :count]
    if num_candidates < count:
        order = torch.nn.functional.pad(order, (0, count - num_candidates), value=num_candidates)
    return torch.sort(order, dim=1).values
