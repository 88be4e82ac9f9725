"""Moves within the cache on NVIDIA GPUs: checks and the launch. Any dtype: bytes are moved."""

import ctypes

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import require_contiguous, require_shape, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("kv_compact", "kv_compact/kv_compact.cu")
_THREADS = 128
_SLICES = (128, 64, 32, 16)  # bytes; the widest that fits
MOST_SHARED_BYTES = 96 << 10  # every GPU from sm_80 on has that much for a block


class KvCompactParams(ctypes.Structure):
    """Mirror of the struct in kv_compact.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("storage", "block_tables", "roots", "nodes", "counts")),
        ("layer_bytes", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("row_bytes", "slice_bytes", "levels", "max_blocks")),
        *((name, ctypes.c_int32) for name in ("num_kv_heads", "block_size")),
    ]


def kv_compact_cuda(
    storage: torch.Tensor, block_tables: torch.Tensor, roots: torch.Tensor, nodes: torch.Tensor, counts: torch.Tensor
) -> None:
    """See `plugins.kv_compact.kv_compact`.

    Raises:
        KernelError: rows that are no multiple of 16 bytes, or more tokens to move than a block can hold.
    """
    num_layers, _, num_kv_heads, block_size, head_dim = storage.shape
    requests, levels = nodes.shape
    row_bytes, held_rows = head_dim * storage.itemsize, (levels - 1) * num_kv_heads
    fitting = [size for size in _SLICES if row_bytes % size == 0 and held_rows * size <= MOST_SHARED_BYTES]
    if not fitting:
        raise KernelError(
            f"kv_compact on CUDA: {held_rows} rows of {row_bytes} bytes of one request; rows must be multiples of 16 "
            f"bytes, and 16 bytes of each fit into {MOST_SHARED_BYTES}"
        )
    require_shape("kv_compact", (requests,), torch.int64, roots=roots, counts=counts)
    require_shape("kv_compact", (requests, levels), torch.int64, nodes=nodes)
    require_shape("kv_compact", (requests, block_tables.shape[1]), torch.int64, block_tables=block_tables)
    named = {"block_tables": block_tables, "roots": roots, "nodes": nodes, "counts": counts}
    require_contiguous("kv_compact", storage=storage, **named)
    if requests == 0 or levels == 1:
        return
    pointers = (tensor.data_ptr() for tensor in (storage, *named.values()))
    params = KvCompactParams(
        *pointers, storage[0].nbytes, row_bytes, fitting[0], levels, block_tables.shape[1], num_kv_heads, block_size
    )  # fmt: skip
    grid = (row_bytes // fitting[0], num_layers, requests)
    run_kernel(SOURCE, "kv_compact_kernel", grid, _THREADS, params, held_rows * fitting[0])
