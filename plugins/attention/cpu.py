"""Paged attention on the CPU: gather each group of requests into one padded batch and let SDPA do the rest.

Requests with the same number of new tokens and a similar context length form a group, so that ragged batches waste
little. Where all of a group are as long, whole blocks are copied and the last one is cut; else single rows, so that a
gather never reads past a request's context: padding repeats its first key and is masked.
"""

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

# query rows (b, L); what to gather, (b, N_kv, n) rows of the cache, or blocks of one head; additive mask (b or 1, 1, L,
# S) or empty where causal attention says the same; room for keys and for values, (b, N_kv, S, D). Where queries are
# folded, the mask's L is that of all query heads of a key/value head, one head's queries after the other's.
_TENSORS_PER_GROUP = 5
_SHORTEST_BUCKET = 64
_MOST_FOLDED = 64  # rows; a product over few is slower by more than its share


def plan_attention_cpu(
    shape: "AttentionShape",
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    dtype: torch.dtype,
    ancestors: torch.Tensor | None,
) -> list[torch.Tensor]:
    starts, contexts = query_starts.tolist(), context_lens.tolist()
    trees = [False] * len(contexts) if ancestors is None else (ancestors[:, 0] != 0).tolist()
    device = query_starts.device
    groups: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for request, context_len in enumerate(contexts):
        query_len = starts[request + 1] - starts[request]
        if not 0 <= query_len <= context_len:
            raise ValueError(f"request {request} of the batch has {query_len} new tokens in a context of {context_len}")
        if query_len == 0:
            continue
        groups[query_len, max(_SHORTEST_BUCKET, context_len).bit_length(), trees[request]].append(request)
    plan: list[torch.Tensor] = []
    for (query_len, _, is_tree), requests in groups.items():
        members = torch.tensor(requests, device=device)
        lens = context_lens[members]
        longest = max(contexts[request] for request in requests)
        same_len = all(contexts[request] == longest for request in requests)
        sources = (_head_blocks if same_len else _key_rows)(shape, lens, longest, block_tables[members])
        if is_tree and ancestors is not None:
            mask = _tree_mask(lens, ancestors[members], shape.sliding_window, dtype)
        elif same_len and (shape.sliding_window is None or shape.sliding_window >= longest):
            mask = _end_mask(query_len, longest, dtype, device)
        else:
            mask = _mask(lens, query_len, shape.sliding_window, dtype)
        queries_per_key = shape.num_heads // shape.num_kv_heads
        if mask.numel() and 1 < query_len <= _MOST_FOLDED // queries_per_key:
            mask = mask.repeat(1, 1, queries_per_key, 1)
        plan += [query_starts[members].unsqueeze(1) + torch.arange(query_len, device=device), sources, mask]
        plan += _room(sources, shape.head_dim * (shape.block_size if same_len else 1), longest, shape.head_dim, dtype)
    return plan


def _head_blocks(shape: "AttentionShape", lens: torch.Tensor, longest: int, tables: torch.Tensor) -> torch.Tensor:
    """Rows (b, N_kv, n) of the cache seen as (num_blocks * N_kv, block_size * D); all contexts are the longest."""
    blocks = tables[:, : -(-longest // shape.block_size)]
    heads = torch.arange(shape.num_kv_heads, device=lens.device).view(1, -1, 1)
    return blocks.unsqueeze(1) * shape.num_kv_heads + heads


def _key_rows(shape: "AttentionShape", lens: torch.Tensor, longest: int, tables: torch.Tensor) -> torch.Tensor:
    """Rows (b, N_kv, S) of the cache seen as (num_blocks * N_kv * block_size, D)."""
    keys = torch.arange(longest, device=lens.device).expand(len(lens), -1)
    keys = torch.where(keys < lens.unsqueeze(1), keys, 0)
    blocks = tables.gather(1, keys // shape.block_size)
    first_rows = blocks * (shape.num_kv_heads * shape.block_size) + keys % shape.block_size
    heads = torch.arange(shape.num_kv_heads, device=lens.device).view(1, -1, 1)
    return first_rows.unsqueeze(1) + heads * shape.block_size


def _room(sources: torch.Tensor, width: int, longest: int, head_dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Room for the keys and the values that `sources`, of `width` elements each, gather; cut to the longest context.

    Its size is a power of two: contexts grow with every step, and the system gives memory of a size that it has just
    taken back without clearing pages anew.
    """
    batch, num_kv_heads = sources.shape[:2]
    needed = sources.numel() * width
    room = torch.empty(2, 1 << (needed - 1).bit_length(), dtype=dtype, device=sources.device)[:, :needed]
    return [half.view(batch, num_kv_heads, -1, head_dim)[:, :, :longest] for half in room]


def _end_mask(query_len: int, longest: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The mask of requests of one length: only the last keys, the queries' own, are hidden from some of them."""
    if query_len in (1, longest):  # which SDPA's own full or causal attention says too
        return torch.empty(0, dtype=dtype, device=device)
    mask = torch.zeros(1, 1, query_len, longest, dtype=dtype, device=device)
    later = torch.ones(query_len, query_len, dtype=torch.bool, device=device).triu(1)
    mask[..., longest - query_len :].masked_fill_(later, float("-inf"))
    return mask


def _mask(lens: torch.Tensor, query_len: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """0 where a query sees a key, -inf elsewhere."""
    keys = torch.arange(int(lens.max()), device=lens.device).view(1, 1, -1)
    last_keys = (lens.unsqueeze(1) - query_len + torch.arange(query_len, device=lens.device)).unsqueeze(2)
    visible = keys <= last_keys
    if window is not None:
        visible &= keys > last_keys - window
    return _additive(visible, dtype)


def _tree_mask(lens: torch.Tensor, ancestors: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """As `_mask`, for trees: ancestors (b, L) bits."""
    num_nodes = ancestors.shape[1]
    nodes = torch.arange(num_nodes, device=lens.device)
    sees = (ancestors.unsqueeze(2) >> nodes) & 1  # (b, L, L)
    depths = sees.sum(dim=2) - 1
    keys = torch.arange(int(lens.max()), device=lens.device)
    roots = (lens - num_nodes).unsqueeze(1)
    node_of_key = (keys - roots).clamp(0, num_nodes - 1)  # (b, S)
    in_tree = sees.gather(2, node_of_key.unsqueeze(1).expand(-1, num_nodes, -1)).bool()
    is_past = (keys < roots).unsqueeze(1)
    is_real = (keys < lens.unsqueeze(1)).unsqueeze(1)
    visible = torch.where(is_past, is_past, in_tree & is_real)
    if window is not None:
        key_positions = torch.where(keys < roots, keys, roots + depths.gather(1, node_of_key))
        visible &= key_positions.unsqueeze(1) > (roots + depths).unsqueeze(2) - window
    return _additive(visible, dtype)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(b, L, S) bool -> (b, 1, L, S), 0 where visible and -inf elsewhere."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, float("-inf")).unsqueeze(1)


def attention_cpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    out: torch.Tensor,
) -> None:
    num_heads, head_dim = q.shape[1:]
    for group in range(0, len(plan), _TENSORS_PER_GROUP):
        query_rows, sources, mask, k, v = plan[group : group + _TENSORS_PER_GROUP]
        _gather(k_cache, sources, k)
        _gather(v_cache, sources, v)
        everything = len(plan) == _TENSORS_PER_GROUP  # one group has all queries, in order
        query = q if everything else q.index_select(0, query_rows.reshape(-1))
        result = _sdpa(query.view(*query_rows.shape, num_heads, head_dim), k, v, mask, scale)
        if everything:
            out.view(result.shape).copy_(result)
        else:
            out.index_copy_(0, query_rows.reshape(-1), result.reshape(-1, num_heads, head_dim))


def _gather(cache: torch.Tensor, sources: torch.Tensor, room: torch.Tensor) -> None:
    """Copy what `sources` (b, N_kv, n) names to `room`, which goes on past the S keys that it shows."""
    width = room.stride(1) // sources.shape[2]  # D, or a block's of one head
    whole = room.as_strided((sources.numel(), width), (width, 1))
    torch.index_select(cache.view(-1, width), 0, sources.view(-1), out=whole)


def _sdpa(query: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """query (b, L, N, D), k and v (b, N_kv, S, D), mask as in the plan -> (b, L, N, D)."""
    sdpa = torch.nn.functional.scaled_dot_product_attention
    batch, query_len, num_heads, head_dim = query.shape
    num_kv_heads = k.shape[1]
    if query_len == 1:
        # The heads of a group see the same keys, so they pass as that many queries of one head: no K, V is repeated.
        grouped = query.view(batch, num_kv_heads, num_heads // num_kv_heads, head_dim)
        result = sdpa(grouped, k, v, attn_mask=mask if mask.numel() else None, scale=scale)
        return result.view(batch, 1, num_heads, head_dim)
    if mask.numel() and mask.shape[2] > query_len:
        by_head = query.unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)  # (b, N_kv, N / N_kv, L, D)
        result = sdpa(by_head.flatten(2, 3), k, v, attn_mask=mask, scale=scale)
        return result.view(by_head.shape).permute(0, 3, 1, 2, 4).flatten(2, 3)
    result = sdpa(
        query.transpose(1, 2),
        k,
        v,
        attn_mask=mask if mask.numel() else None,
        is_causal=not mask.numel(),
        scale=scale,
        enable_gqa=num_heads != num_kv_heads,
    )
    return result.transpose(1, 2)
