"""What the attention kernels take, and clear words for what they do not."""

from typing import TYPE_CHECKING

import torch

from plugins.attention.cuda_layout import Layout
from plugins.cuda.errors import KernelError

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

HEAD_DIMS = (64, 96, 128, 256)
ELEMENTS = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
MIN_BLOCK_SIZE = 16  # keys of a chunk


def check_shape(shape: "AttentionShape") -> None:
    if shape.head_dim not in HEAD_DIMS:
        raise KernelError(f"attention on CUDA: head_dim is {shape.head_dim}; there are kernels for {HEAD_DIMS}")
    if shape.block_size < MIN_BLOCK_SIZE or shape.block_size & (shape.block_size - 1):
        raise KernelError(
            f"attention on CUDA: block_size is {shape.block_size}; it must be a power of two, {MIN_BLOCK_SIZE} or more"
        )
    if shape.num_heads % shape.num_kv_heads:
        raise KernelError(f"attention: {shape.num_heads} heads do not share {shape.num_kv_heads} K/V heads evenly")


def check_indices(tensor: torch.Tensor, size: int | None, device: torch.device) -> None:
    if tensor.dtype != torch.int64 or tensor.device != device or not tensor.is_contiguous():
        raise KernelError(
            f"attention on CUDA: an index tensor is {tensor.dtype} on {tensor.device} with strides {tensor.stride()}; "
            f"it must be int64, contiguous and on {device}"
        )
    if size is not None and len(tensor) != size:
        raise KernelError(f"attention: an index tensor has {len(tensor)} rows, the batch needs {size}")


def check_tensors(
    layout: Layout, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scale: float, out: torch.Tensor
) -> None:
    queries = (layout.num_tokens, layout.num_heads, layout.head_dim)
    blocks = (layout.num_kv_heads, layout.block_size, layout.head_dim)
    if q.shape != queries or out.shape != queries or k_cache.shape[1:] != blocks or v_cache.shape != k_cache.shape:
        raise KernelError(
            f"attention: q {tuple(q.shape)}, out {tuple(out.shape)}, caches {tuple(k_cache.shape)} and "
            f"{tuple(v_cache.shape)} do not fit the plan's {queries} and (num_blocks, {', '.join(map(str, blocks))})"
        )
    if len({q.dtype, k_cache.dtype, v_cache.dtype, out.dtype}) > 1 or q.dtype not in ELEMENTS:
        raise KernelError(
            f"attention on CUDA: q is {q.dtype}, the caches {k_cache.dtype} and {v_cache.dtype}, out {out.dtype}; "
            "all must be bfloat16, or all float16"
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise KernelError("attention on CUDA: the caches must be contiguous")
    for tensor in (q, k_cache, v_cache, out):
        if tensor.stride(-1) != 1 or tensor.stride(0) % 8 or tensor.stride(1) % 8 or tensor.data_ptr() % 16:
            raise KernelError(
                f"attention on CUDA: a tensor has strides {tensor.stride()}; "
                "rows must be contiguous and aligned to 16 bytes"
            )
    if scale <= 0:
        raise KernelError(f"attention: scale is {scale}; it must be positive")
