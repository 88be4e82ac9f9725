"""The tokens of a step in torch, on any device, without a wait for the host."""

import torch


def place_tokens_plain(
    slots: torch.Tensor,
    query_starts: torch.Tensor,
    starts: torch.Tensor,
    is_drawn: torch.Tensor,
    known_ids: torch.Tensor,
    num_tokens: torch.Tensor,
    history: torch.Tensor,
    tree_ids: torch.Tensor | None,
    tree_depths: torch.Tensor | None,
    turn: torch.Tensor | None,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    cache_positions: torch.Tensor,
    context_lens: torch.Tensor,
    roots: torch.Tensor,
) -> None:
    if turn is not None:
        turn.add_(1)
    drawn, counts = is_drawn.bool(), query_starts.diff()
    first = torch.where(drawn, num_tokens[slots] - 1, starts)
    torch.add(first, counts, out=context_lens)
    torch.where(drawn, first, context_lens - 1, out=roots)
    last_ids = history[slots, first]
    owners = torch.repeat_interleave(counts, output_size=len(known_ids))
    offsets = torch.arange(len(known_ids), device=slots.device) - query_starts[owners]
    torch.add(first[owners], offsets, out=cache_positions)
    if tree_ids is None or tree_depths is None:
        positions.copy_(cache_positions)
        drawn_ids = last_ids[owners]
    else:
        nodes = offsets.clamp(max=tree_ids.shape[1] - 1)
        positions.copy_(first[owners] + torch.where(drawn[owners], tree_depths[owners, nodes], offsets))
        drawn_ids = tree_ids[owners, nodes].clamp(min=0)
    torch.where(drawn[owners], drawn_ids, known_ids, out=token_ids)
