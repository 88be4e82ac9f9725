"""Which keys each query sees, spelled out: for attention that takes a mask. Every operation is of fixed size."""

import torch


def visible_keys(
    num_tokens: int,
    num_keys: int,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    ancestors: torch.Tensor | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """(T, num_keys) bool: whether a query sees each of the first keys of its request, by the rules of `plan_attention`.

    Args:
        query_starts, context_lens, ancestors: as there.
        num_keys: at least the longest context.
    """
    device = query_starts.device
    keys = torch.arange(num_keys, device=device)
    counts = query_starts.diff()
    owners = torch.repeat_interleave(counts, output_size=num_tokens)
    queries = torch.arange(num_tokens, device=device) - query_starts[owners]
    firsts = (context_lens - counts)[owners]
    positions, key_positions = firsts + queries, keys.expand(num_tokens, num_keys)
    visible = keys <= positions.unsqueeze(1)
    if ancestors is not None:
        bits = ancestors[owners, queries.clamp(max=ancestors.shape[1] - 1)]
        is_tree = (ancestors[:, 0] != 0)[owners]
        node_of_key = (keys - firsts.unsqueeze(1)).clamp(0, ancestors.shape[1] - 1)
        in_tree = (bits.unsqueeze(1) >> node_of_key & 1).bool() & (keys < context_lens[owners].unsqueeze(1))
        is_past = keys < firsts.unsqueeze(1)
        visible = torch.where(is_tree.unsqueeze(1), is_past | in_tree, visible)
        if sliding_window is not None:
            depths = _num_bits(ancestors, ancestors.shape[1]) - 1
            positions = firsts + torch.where(is_tree, _num_bits(bits, ancestors.shape[1]) - 1, queries)
            of_nodes = firsts.unsqueeze(1) + depths[owners].gather(1, node_of_key)
            key_positions = torch.where(is_past | ~is_tree.unsqueeze(1), keys, of_nodes)
    if sliding_window is not None:
        visible = visible & (key_positions > positions.unsqueeze(1) - sliding_window)
    return visible


def _num_bits(words: torch.Tensor, num_bits: int) -> torch.Tensor:
    return (words.unsqueeze(-1) >> torch.arange(num_bits, device=words.device) & 1).sum(dim=-1)
