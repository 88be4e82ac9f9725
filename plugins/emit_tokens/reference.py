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
    tree_ids: torch.Tensor | None,
    turn: torch.Tensor | None,
    results: torch.Tensor | None,
    idle_slot: int,
) -> None:
    """Write the texts, the hidden states and the results in place."""
    for row, slot in enumerate(slots.tolist()):
        root, count = int(roots[row]), int(counts[row])
        num_tokens[slot] = 1 if slot == idle_slot else root + 1 + count
        last_hidden[slot] = hidden[int(first_rows[row]) + int(nodes[row, count - 1])]
        for index, token in enumerate(token_ids[row].tolist()):
            history[slot, root + 1 + index] = token
        if results is not None and turn is not None:
            drafted = [] if tree_ids is None else [token for token in tree_ids[row, 1:].tolist() if token >= 0]
            values = [count, len(drafted), *token_ids[row].tolist()]
            results[int(turn) % len(results), row] = torch.tensor(values)
