"""Rotary positions for Q and K, and the K and V of new tokens into the cache, in one op."""

import torch

from plugins.cuda.run import ELEMENTS
from plugins.library import define, implement
from plugins.rope_kv_write.cpu import rope_kv_write_cpu
from plugins.rope_kv_write.cuda import rope_kv_write_cuda

define(
    "rope_kv_write(Tensor qkv, Tensor cos, Tensor sin, Tensor kv_rows, Tensor? q_norm, Tensor? k_norm, float eps, "
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) q_out) -> ()"
)
implement("rope_kv_write", "CPU", rope_kv_write_cpu)


def _rope_kv_write_on_cuda(
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
    """A kernel for 16-bit dtypes; float32 and float64 are for tests and comparisons."""
    run = rope_kv_write_cuda if q_out.dtype in ELEMENTS else rope_kv_write_cpu
    run(qkv, cos, sin, kv_rows, q_norm, k_norm, eps, k_cache, v_cache, q_out)


implement("rope_kv_write", "CUDA", _rope_kv_write_on_cuda)


def rope_kv_write(
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
) -> torch.Tensor:
    """Rotate Q and K, write K and V of each token to its cache slot, write Q to `q_out` and return it.

    The rotation pairs dimension i with i + D/2 (the Hugging Face layout, not the interleaved one).
    Source: Su et al., "RoFormer" (2021), equation 34.

    Args:
        qkv: (T, (N + 2 N_kv) D), heads of Q, then K, then V.
        cos, sin: (T, D) same dtype, each half repeated, the first half of `sin` negated: see `runtime.model.rope`.
        kv_rows: (T, N_kv) int64, where each token's keys and values go: rows of the caches seen as
            (num_blocks * N_kv * block_size, D). No two may be equal. The same in every layer: see `KVCache.rows`.
        q_norm, k_norm: (D,) RMSNorm weights applied per head before the rotation (Qwen3), or both None.
        eps: of those norms.
        k_cache, v_cache: (num_blocks, N_kv, block_size, D), contiguous, written in place at `kv_rows` only.
        q_out: (T, N, D).

    Raises:
        KernelError: on CUDA, in 16-bit dtypes: a head_dim without a kernel, or tensors that do not fit together.
    """
    torch.ops.enginewright.rope_kv_write.default(
        qkv, cos, sin, kv_rows, q_norm, k_norm, eps, k_cache, v_cache, q_out
    )  # fmt: skip
    return q_out
