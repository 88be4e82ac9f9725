"""Paged attention on the CPU: gather each group of requests into one padded batch and let SDPA do the rest.

Requests with the same number of new tokens and a similar context length form a group, so that ragged batches waste
little. A gather never reads past a request's context: padding repeats its first key and is masked.
"""

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

# query rows (b, L), key rows (b, N_kv, S), additive mask (b, 1, L, S) or empty where causal attention says the same
_TENSORS_PER_GROUP = 3
_SHORTEST_BUCKET = 64


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
        plan.append(query_starts[members].unsqueeze(1) + torch.arange(query_len, device=device))
        plan.append(_key_rows(shape, lens, block_tables[members]))
        if is_tree and ancestors is not None:
            plan.append(_tree_mask(lens, ancestors[members], shape.sliding_window, dtype))
        else:
            plan.append(_mask(lens, query_len, shape.sliding_window, dtype))
    return plan


def _key_rows(shape: "AttentionShape", lens: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Rows (b, N_kv, S) of the cache seen as (num_blocks * N_kv * block_size, D)."""
    keys = torch.arange(int(lens.max()), device=lens.device).expand(len(lens), -1)
    keys = torch.where(keys < lens.unsqueeze(1), keys, 0)
    blocks = tables.gather(1, keys // shape.block_size)
    first_rows = blocks * (shape.num_kv_heads * shape.block_size) + keys % shape.block_size
    heads = torch.arange(shape.num_kv_heads, device=lens.device).view(1, -1, 1)
    return first_rows.unsqueeze(1) + heads * shape.block_size


def _mask(lens: torch.Tensor, query_len: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """0 where a query sees a key, -inf elsewhere; empty where SDPA's own causal or full attention says the same."""
    longest = int(lens.max())
    same_len = bool((lens == longest).all())
    window_hides_nothing = window is None or window >= longest
    if same_len and window_hides_nothing and query_len in (1, longest):
        return torch.empty(0, dtype=dtype, device=lens.device)
    keys = torch.arange(longest, device=lens.device).view(1, 1, -1)
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
    k_rows, v_rows = k_cache.view(-1, head_dim), v_cache.view(-1, head_dim)
    for group in range(0, len(plan), _TENSORS_PER_GROUP):
        query_rows, key_rows, mask = plan[group : group + _TENSORS_PER_GROUP]
        rows = key_rows.reshape(-1)
        k = k_rows.index_select(0, rows).view(*key_rows.shape, head_dim)
        v = v_rows.index_select(0, rows).view(*key_rows.shape, head_dim)
        everything = len(plan) == _TENSORS_PER_GROUP  # one group has all queries, in order
        query = q if everything else q.index_select(0, query_rows.reshape(-1))
        result = _sdpa(query.view(*query_rows.shape, num_heads, head_dim), k, v, mask, scale)
        if everything:
            out.view(result.shape).copy_(result)
        else:
            out.index_copy_(0, query_rows.reshape(-1), result.reshape(-1, num_heads, head_dim))


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
