"""What a step leaves, in torch, on any device."""

import torch


def emit_tokens_plain(
    slots: torch.Tensor,
    roots: torch.Tensor,
    first_rows: torch.Tensor,
    token_ids: torch.Tensor,
    nodes: torch.Tensor,
    counts: torch.Tensor,
    hidden: torch.Tensor,
    num_tokens: torch.Tensor,
    history: torch.Tensor,
    last_hidden: torch.Tensor,
    tree_ids: torch.Tensor | None,
    turn: torch.Tensor | None,
    results: torch.Tensor | None,
    idle_slot: int,
) -> None:
    first = roots + 1
    num_tokens[slots] = torch.where(slots == idle_slot, 1, first + counts) if idle_slot >= 0 else first + counts
    last_nodes = nodes.gather(1, (counts - 1).unsqueeze(1)).squeeze(1)
    last_hidden[slots] = hidden[first_rows + last_nodes]
    columns = first.unsqueeze(1) + torch.arange(token_ids.shape[1], device=slots.device)
    history[slots.unsqueeze(1), columns] = token_ids
    if results is not None and turn is not None:
        num_drafted = torch.zeros_like(counts) if tree_ids is None else (tree_ids[:, 1:] >= 0).sum(dim=1)
        result = torch.cat([torch.stack([counts, num_drafted], dim=1), token_ids], dim=1)
        results.index_copy_(0, turn % len(results), result.unsqueeze(0))
