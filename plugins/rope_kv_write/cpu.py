"""Rotary positions and the cache write in vectorised torch: Q and K are rotated together."""

import torch


def rope_kv_write_cpu(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv_rows: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_out: torch.Tensor,
) -> None:
    num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    num_heads = q_out.shape[1]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    to_rotate = heads[:, : num_heads + num_kv_heads]
    if q_norm is not None and k_norm is not None:
        to_rotate = torch.cat([
            torch.nn.functional.rms_norm(to_rotate[:, :num_heads], (head_dim,), q_norm, eps),
            torch.nn.functional.rms_norm(to_rotate[:, num_heads:], (head_dim,), k_norm, eps),
        ], dim=1)  # fmt: skip
    swapped = to_rotate.roll(head_dim // 2, dims=-1)
    rotated = torch.addcmul(to_rotate * cos.unsqueeze(1), swapped, sin.unsqueeze(1))
    q_out.copy_(rotated[:, :num_heads])
    rows = kv_rows.reshape(-1)
    k_cache.view(-1, head_dim).index_copy_(0, rows, rotated[:, num_heads:].reshape(-1, head_dim))
    v_cache.view(-1, head_dim).index_copy_(0, rows, heads[:, num_heads + num_kv_heads :].reshape(-1, head_dim))
