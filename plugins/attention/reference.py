"""Attention over the paged cache, one query and one head at a time in float64: the oracle."""

import torch


def attention_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_starts: list[int],
    context_lens: list[int],
    block_tables: list[list[int]],
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Return (T, N, D) float64; arguments as in `plugins.attention`, with host lists in place of tensors."""
    block_size = k_cache.shape[2]
    group = q.shape[1] // k_cache.shape[1]
    out = torch.empty(q.shape, dtype=torch.float64)
    for request, context_len in enumerate(context_lens):
        start, end = query_starts[request], query_starts[request + 1]
        for token in range(start, end):
            last_key = context_len - end + token
            first_key = 0 if sliding_window is None else max(0, last_key - sliding_window + 1)
            keys = range(first_key, last_key + 1)
            where = [(block_tables[request][key // block_size], key % block_size) for key in keys]
            for head in range(q.shape[1]):
                k = torch.stack([k_cache[block, head // group, offset] for block, offset in where]).double()
                v = torch.stack([v_cache[block, head // group, offset] for block, offset in where]).double()
                out[token, head] = torch.softmax(scale * (k @ q[token, head].double()), dim=0) @ v
    return out
