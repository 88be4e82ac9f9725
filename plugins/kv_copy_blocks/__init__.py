"""Whole blocks of the KV cache copied to other blocks, in every layer at once: the copy of copy-on-write."""

import torch

from plugins.kv_copy_blocks.cpu import kv_copy_blocks_cpu
from plugins.kv_copy_blocks.cuda import kv_copy_blocks_cuda
from plugins.library import define, implement

define("kv_copy_blocks(Tensor(a!) storage, Tensor src, Tensor dst) -> ()")
implement("kv_copy_blocks", "CPU", kv_copy_blocks_cpu)
implement("kv_copy_blocks", "CUDA", kv_copy_blocks_cuda)


def kv_copy_blocks(storage: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copy block src[c] over block dst[c], keys and values of all layers.

    Args:
        storage: (2 L, num_blocks, N_kv, block_size, D), contiguous, written in place at the blocks `dst` only.
        src: (C,) int64. A block may be copied to several others.
        dst: (C,) int64. No two are equal, and none is in `src`, so that the copies may run in any order.

    Raises:
        KernelError: on CUDA, blocks that are no multiple of 16 bytes.
    """
    torch.ops.enginewright.kv_copy_blocks.default(storage, src, dst)
