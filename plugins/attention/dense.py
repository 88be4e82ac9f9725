"""Attention on any device without a wait for the host: every query beside every key that its request could have.

Slow and large, T x max_blocks x block_size keys, and the same operations whatever the batch holds: for captured steps
in dtypes that have no kernel.
"""

from typing import TYPE_CHECKING

import torch

from plugins.attention.visible import visible_keys

if TYPE_CHECKING:
    from plugins.attention import AttentionShape


def plan_attention_dense(
    shape: "AttentionShape",
    num_tokens: int,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    ancestors: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Rows (T, N_kv, S) of the cache seen as (num_blocks * N_kv * block_size, D), and who sees what (T, 1, S)."""
    num_keys = block_tables.shape[1] * shape.block_size
    visible = visible_keys(num_tokens, num_keys, query_starts, context_lens, ancestors, shape.sliding_window)
    device, counts = query_starts.device, query_starts.diff()
    keys = torch.arange(num_keys, device=device)
    owners = torch.repeat_interleave(counts, output_size=num_tokens)
    firsts = (context_lens - counts)[owners]
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
