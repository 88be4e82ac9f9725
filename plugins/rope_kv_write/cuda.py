"""Rotary positions and the cache write on NVIDIA GPUs: checks and the launch."""

import ctypes

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import ELEMENTS, require_contiguous, require_rows, require_shape, run_kernel
from plugins.cuda.source import KernelSource

HEAD_DIMS = (16, 32, 64, 96, 128, 256)
_THREADS = 128


class RopeKvWriteParams(ctypes.Structure):
    """Mirror of the struct in rope_kv_write.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("qkv", "cos", "sin", "kv_rows", "q_norm", "k_norm")),
        *((name, ctypes.c_void_p) for name in ("k_cache", "v_cache", "q_out")),
        ("qkv_stride", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("tokens", "num_heads", "num_kv_heads")),
        ("eps", ctypes.c_float),
    ]


def source(element: torch.dtype) -> KernelSource:
    """What is compiled for that dtype."""
    return KernelSource("rope_kv_write", "rope_kv_write/rope_kv_write.cu", (("ELEMENT", ELEMENTS[element]),))


def rope_kv_write_cuda(
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
    tokens, num_heads, head_dim = q_out.shape
    num_kv_heads = k_cache.shape[1]
    _check(qkv, cos, sin, kv_rows, q_norm, k_norm, k_cache, v_cache, q_out)
    if tokens == 0:
        return
    params = RopeKvWriteParams(
        qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), kv_rows.data_ptr(),
        None if q_norm is None else q_norm.data_ptr(), None if k_norm is None else k_norm.data_ptr(),
        k_cache.data_ptr(), v_cache.data_ptr(), q_out.data_ptr(), qkv.stride(0), tokens, num_heads, num_kv_heads, eps,
    )  # fmt: skip
    items_per_block = _THREADS // max(1, 1 << (head_dim // 16 - 1).bit_length())
    blocks = -(-tokens * (num_heads + 2 * num_kv_heads) // items_per_block)
    run_kernel(source(q_out.dtype), f"rope_kv_write_{head_dim}_kernel", blocks, _THREADS, params)


def _check(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv_rows: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_out: torch.Tensor,
) -> None:
    op, dtype = "rope_kv_write", q_out.dtype
    tokens, num_heads, head_dim = q_out.shape
    num_kv_heads = k_cache.shape[1]
    if head_dim not in HEAD_DIMS:
        raise KernelError(f"{op} on CUDA: head_dim is {head_dim}; there are kernels for {HEAD_DIMS}")
    if (q_norm is None) != (k_norm is None):
        raise KernelError(f"{op}: one of q_norm and k_norm is missing; give both or none")
    norms = {} if q_norm is None or k_norm is None else {"q_norm": q_norm, "k_norm": k_norm}
    require_shape(op, (tokens, (num_heads + 2 * num_kv_heads) * head_dim), dtype, qkv=qkv)
    require_shape(op, (tokens, head_dim), dtype, cos=cos, sin=sin)
    require_shape(op, (tokens, num_kv_heads), torch.int64, kv_rows=kv_rows)
    require_shape(op, (head_dim,), dtype, **norms)
    require_shape(op, (*k_cache.shape[:3], head_dim), dtype, k_cache=k_cache, v_cache=v_cache)
    require_contiguous(op, cos=cos, sin=sin, kv_rows=kv_rows, k_cache=k_cache, v_cache=v_cache, q_out=q_out)
    require_rows(op, qkv=qkv, cos=cos, sin=sin, k_cache=k_cache, v_cache=v_cache, q_out=q_out, **norms)
