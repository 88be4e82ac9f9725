"""Sampling on NVIDIA GPUs, from float32 logits: checks, sizes of grids, and the two launches."""

import ctypes

import torch

from plugins.cuda.run import require_contiguous, require_shape, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("sample", "sample/sample.cu")
THREADS = 512  # SAMPLE_THREADS of sample.cuh
SHARED_BYTES = 16 * 16 + 256 * 12 + 24  # SampleScratch
BEST_BYTES = 16
_BLOCKS = 264  # two on every multiprocessor of the largest GPUs
_CHUNK = 2048  # tokens that are worth a block

_ROWS = ("temperature", "top_k", "top_p", "min_p", "seed", "sample_index", "position")
_DTYPES = (torch.float32, torch.int64, torch.float32, torch.float32, torch.int64, torch.int64, torch.int64)


class SampleParams(ctypes.Structure):
    """Mirror of the struct in sample.cuh."""

    _fields_ = [
        ("logits", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _ROWS),
        ("bests", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("vocab_size", ctypes.c_int32),
        ("num_chunks", ctypes.c_int32),
    ]


def sample_cuda(logits: torch.Tensor, *rest: torch.Tensor) -> None:
    """See `plugins.sample.sample`; allocates what one launch hands the other.

    Raises:
        KernelError: shapes, dtypes or strides that the kernels do not take.
    """
    *per_row, out = rest
    num_rows, vocab_size = logits.shape
    require_shape("sample", (num_rows, vocab_size), torch.float32, logits=logits)
    given = dict(zip((*_ROWS, "out"), rest, strict=True))
    for (name, values), dtype in zip(given.items(), (*_DTYPES, torch.int64), strict=True):
        require_shape("sample", (num_rows,), dtype, **{name: values})
    require_contiguous("sample", logits=logits, **given)
    if not num_rows:
        return
    num_chunks = max(1, min(_BLOCKS // num_rows, -(-vocab_size // _CHUNK)))
    bests = torch.empty(num_rows * num_chunks * BEST_BYTES, dtype=torch.uint8, device=logits.device)
    pointers = [values.data_ptr() for values in per_row]
    params = SampleParams(logits.data_ptr(), *pointers, bests.data_ptr(), out.data_ptr(), vocab_size, num_chunks)
    run_kernel(SOURCE, "sample_chunks_kernel", (num_chunks, num_rows), THREADS, params, SHARED_BYTES)
    run_kernel(SOURCE, "sample_rows_kernel", num_rows, THREADS, params, SHARED_BYTES)
