"""What a step leaves, one row at a time: the oracle."""

import torch


def emit_tokens_reference(
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
    """Write the last three in place."""
    for row, slot in enumerate(slots.tolist()):
        root, count = int(roots[row]), int(counts[row])
        num_tokens[slot] = root + 1 + count
        last_hidden[slot] = hidden[int(first_rows[row]) + int(nodes[row, count - 1])]
        for index, token in enumerate(token_ids[row].tolist()):
            history[slot, root + 1 + index] = token
