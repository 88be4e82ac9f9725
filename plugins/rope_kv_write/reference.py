"""Rotary positions and the cache write, one token and one head at a time in float64: the oracle."""

import torch

from plugins.rms_norm.reference import rms_norm_reference


def rope_kv_write_reference(
    qkv: torch.Tensor,
    angles: torch.Tensor,
    slots: list[int],
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Return Q (T, N, D) float64 and write the float64 caches in place.

    Args:
        angles: (T, D/2) float64, the angle of each pair; the op's `cos` and `sin` are made from them.
        slots: block * block_size + offset of each token; the op's `kv_rows` are made from them.
    """
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    heads = qkv.double().view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    q_out = torch.empty(qkv.shape[0], num_heads, head_dim, dtype=torch.float64)
    for token in range(qkv.shape[0]):
        block, offset = divmod(slots[token], block_size)
        for head in range(num_heads):
            q_out[token, head] = _rotate(_norm(heads[token, head], q_norm, eps), angles[token])
        for head in range(num_kv_heads):
            k_cache[block, head, offset] = _rotate(_norm(heads[token, num_heads + head], k_norm, eps), angles[token])
            v_cache[block, head, offset] = heads[token, num_heads + num_kv_heads + head]
    return q_out


def _norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return x if weight is None else rms_norm_reference(x, weight, eps)


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2)
    cos, sin = torch.cos(angles), torch.sin(angles)
    return torch.cat([first * cos - second * sin, second * cos + first * sin])
