"""One decoder step in plain torch, one request and one head at a time, in float64: the oracle."""

from itertools import pairwise

import torch

from plugins.decoder_step.weights import StepWeights
from plugins.rms_norm.reference import rms_norm_reference
from plugins.silu_mul.reference import silu_mul_reference


def decoder_step_reference(
    weights: StepWeights,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    query_starts: list[int],
    context_lens: list[int],
    block_tables: list[list[int]],
    visible: list[list[list[int]]],
    cache: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (R, V) and hidden (R, H), float64, and write the new keys and values to `cache` (float64).

    Args:
        visible: for each request and each of its rows, the keys it sees, as indices among the request's tokens.
        cache: (2 L, num_blocks, N_kv, block_size, D); other arguments as in `plugins.decoder_step`.
    """
    spec = weights.spec
    residual = weights.embedding[token_ids].double()
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    for index, layer in enumerate(weights.layers):
        qkv = rms_norm_reference(residual, layer.input_norm, spec.norm_eps) @ layer.qkv.double().T
        if layer.qkv_bias is not None:
            qkv = qkv + layer.qkv_bias.double()
        q, k, v = (part.unflatten(1, (-1, spec.head_dim)) for part in qkv.split([q_size, kv_size, kv_size], dim=1))
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm_reference(q, layer.q_norm, spec.norm_eps)
            k = rms_norm_reference(k, layer.k_norm, spec.norm_eps)
        q, k = _rotate(q, weights, positions), _rotate(k, weights, positions)
        attended = torch.empty_like(q)
        for request, (first, end) in enumerate(pairwise(query_starts)):
            table, start = block_tables[request], context_lens[request] - (end - first)
            layer_cache = cache[2 * index : 2 * index + 2]
            for row in range(first, end):
                block, offset = _where(table, start + row - first, cache.shape[3])
                layer_cache[0, block, :, offset], layer_cache[1, block, :, offset] = k[row], v[row]
            for row, keys in zip(range(first, end), visible[request], strict=True):
                places = [_where(table, key, cache.shape[3]) for key in keys]
                attended[row] = _attend(q[row], layer_cache, places)
        residual = residual + attended.flatten(1) @ layer.dense.double().T
        normed = rms_norm_reference(residual, layer.post_norm, spec.norm_eps)
        gate_up = normed @ torch.cat([layer.fc, layer.gate]).double().T
        residual = residual + silu_mul_reference(gate_up) @ layer.down.double().T
    hidden = rms_norm_reference(residual, weights.final_norm, spec.norm_eps)
    return hidden @ weights.head.double().T, hidden


def _attend(q: torch.Tensor, layer_cache: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """q (N, D), layer_cache (2, num_blocks, N_kv, block_size, D) -> (N, D)."""
    keys, values = (torch.stack([cache[block, :, offset] for block, offset in places]) for cache in layer_cache)
    group = q.shape[0] // keys.shape[1]
    out = torch.empty_like(q)
    for head in range(q.shape[0]):
        scores = keys[:, head // group] @ q[head] * q.shape[1] ** -0.5
        out[head] = torch.softmax(scores, 0) @ values[:, head // group]
    return out


def _where(table: list[int], key: int, block_size: int) -> tuple[int, int]:
    return table[key // block_size], key % block_size


def _rotate(heads: torch.Tensor, weights: StepWeights, positions: torch.Tensor) -> torch.Tensor:
    cos, sin = (table[positions].double().unsqueeze(1) for table in (weights.cos, weights.sin))
    return heads * cos + heads.roll(heads.shape[-1] // 2, dims=-1) * sin
