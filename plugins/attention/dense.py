"""Attention on any device without a wait for the host: every query beside every key that its request could have.

Slow and large, T x max_blocks x block_size keys, and the same operations whatever the batch holds: for captured steps
in dtypes that have no kernel.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

_PLAN_LENGTH = 2


def plan_attention_dense(
    shape: "AttentionShape",
    num_tokens: int,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    ancestors: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Rows (T, N_kv, S) of the cache seen as (num_blocks * N_kv * block_size, D), and who sees what (T, 1, S)."""
    device = query_starts.device
    tokens, keys = torch.arange(num_tokens, device=device), torch.arange(
        block_tables.shape[1] * shape.block_size, device=device
    )  # fmt: skip
    counts = query_starts.diff()
    owners = torch.repeat_interleave(counts, output_size=num_tokens)
    queries = tokens - query_starts[owners]
    firsts = (context_lens - counts)[owners]
    rows, _ = torch.broadcast_tensors(tokens.unsqueeze(1), keys)
    positions, key_positions = firsts + queries, keys.expand_as(rows)
    visible = keys <= positions.unsqueeze(1)
    if ancestors is not None:
        bits = ancestors[owners, queries.clamp(max=ancestors.shape[1] - 1)]
        is_tree = (ancestors[:, 0] != 0)[owners]
        node_of_key = (keys - firsts.unsqueeze(1)).clamp(0, ancestors.shape[1] - 1)
        in_tree = (bits.unsqueeze(1) >> node_of_key & 1).bool() & (keys < context_lens[owners].unsqueeze(1))
        is_past = keys < firsts.unsqueeze(1)
        visible = torch.where(is_tree.unsqueeze(1), is_past | in_tree, visible)
        if shape.sliding_window is not None:
            depths = _num_bits(ancestors, ancestors.shape[1]) - 1
            positions = firsts + torch.where(is_tree, _num_bits(bits, ancestors.shape[1]) - 1, queries)
            of_nodes = firsts.unsqueeze(1) + depths[owners].gather(1, node_of_key)
            key_positions = torch.where(is_past | ~is_tree.unsqueeze(1), keys, of_nodes)
    if shape.sliding_window is not None:
        visible = visible & (key_positions > positions.unsqueeze(1) - shape.sliding_window)
    blocks = block_tables[owners].repeat_interleave(shape.block_size, dim=1)
    cache_rows = blocks * (shape.num_kv_heads * shape.block_size) + keys % shape.block_size
    cache_rows = torch.where(visible, cache_rows, cache_rows.gather(1, firsts.unsqueeze(1)))  # its own key is written
    heads = torch.arange(shape.num_kv_heads, device=device).view(1, -1, 1) * shape.block_size
    return [cache_rows.unsqueeze(1) + heads, visible.unsqueeze(1)]


def attention_dense(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    out: torch.Tensor,
) -> None:
    cache_rows, visible = plan
    num_tokens, num_heads, head_dim = q.shape
    k, v = (cache.view(-1, head_dim)[cache_rows] for cache in (k_cache, v_cache))  # (T, N_kv, S, D)
    grouped = q.view(num_tokens, k.shape[1], num_heads // k.shape[1], head_dim)
    scores = (grouped @ k.transpose(2, 3)) * scale
    weights = torch.softmax(scores.masked_fill(~visible.unsqueeze(1), -torch.inf), dim=-1)
    out.copy_((weights @ v).view_as(out))


def _num_bits(words: torch.Tensor, num_bits: int) -> torch.Tensor:
    return (words.unsqueeze(-1) >> torch.arange(num_bits, device=words.device) & 1).sum(dim=-1)
