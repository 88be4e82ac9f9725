"""Moves within the cache on NVIDIA GPUs: checks and the launch. Any dtype: bytes are moved."""

import ctypes

import torch

from plugins.cuda.run import require_contiguous, require_rows, require_shape, run_kernel
from plugins.cuda.source import KernelSource
from plugins.kv_compact.cpu import kv_compact_cpu

SOURCE = KernelSource("kv_compact", "kv_compact/kv_compact.cu")
_THREADS = 256
_SLICES = (64, 32, 16)  # bytes; the widest that fits
MOST_SHARED_BYTES = 96 << 10  # every GPU from sm_80 on has that much for a block


class KvCompactParams(ctypes.Structure):
    """Mirror of the struct in kv_compact.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("storage", "source_rows", "target_rows")),
        ("layer_bytes", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("row_bytes", "slice_bytes", "count", "unused")),
    ]


def kv_compact_cuda(storage: torch.Tensor, source_rows: torch.Tensor, target_rows: torch.Tensor) -> None:
    op, count = "kv_compact", len(source_rows)
    row_bytes = storage.shape[-1] * storage.itemsize
    fitting = [size for size in _SLICES if row_bytes % size == 0 and count * size <= MOST_SHARED_BYTES]
    if not fitting:  # more rows than a block can hold even 16 bytes of
        kv_compact_cpu(storage, source_rows, target_rows)
        return
    require_shape(op, (count,), torch.int64, source_rows=source_rows, target_rows=target_rows)
    require_contiguous(op, storage=storage, source_rows=source_rows, target_rows=target_rows)
    require_rows(op, storage=storage)
    if count == 0:
        return
    params = KvCompactParams(
        storage.data_ptr(), source_rows.data_ptr(), target_rows.data_ptr(), storage[0].nbytes,
        row_bytes, fitting[0], count, 0,
    )  # fmt: skip
    grid = (row_bytes // fitting[0], len(storage))
    run_kernel(SOURCE, "kv_compact_kernel", grid, _THREADS, params, count * fitting[0])
