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
) -> None:
    first = roots + 1
    num_tokens[slots] = first + counts
    last_nodes = nodes.gather(1, (counts - 1).unsqueeze(1)).squeeze(1)
    last_hidden[slots] = hidden[first_rows + last_nodes]
    columns = first.unsqueeze(1) + torch.arange(token_ids.shape[1], device=slots.device)
    history[slots.unsqueeze(1), columns] = token_ids
