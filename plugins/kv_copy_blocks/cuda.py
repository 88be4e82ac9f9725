"""Block copies on NVIDIA GPUs: checks and the launch. Any dtype: bytes are copied."""

import ctypes

import torch

from plugins.cuda.run import require_contiguous, require_rows, require_shape, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("kv_copy_blocks", "kv_copy_blocks/kv_copy_blocks.cu")
_THREADS = 256


class KvCopyBlocksParams(ctypes.Structure):
    """Mirror of the struct in kv_copy_blocks.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("storage", "src", "dst")),
        *((name, ctypes.c_int64) for name in ("layer_bytes", "block_bytes")),
    ]


def kv_copy_blocks_cuda(storage: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    op, count = "kv_copy_blocks", len(src)
    require_shape(op, (count,), torch.int64, src=src, dst=dst)
    require_contiguous(op, storage=storage)
    src, dst = src.contiguous(), dst.contiguous()  # columns of the list of copies
    require_rows(op, storage=storage.view(len(storage), -1), blocks=storage.view(-1, storage[0, 0].numel()))
    if count == 0:
        return
    params = KvCopyBlocksParams(
        storage.data_ptr(), src.data_ptr(), dst.data_ptr(), storage[0].nbytes, storage[0, 0].nbytes
    )
    run_kernel(SOURCE, "kv_copy_blocks_kernel", (count, len(storage)), _THREADS, params)
