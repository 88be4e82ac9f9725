"""Sampling on NVIDIA GPUs, from float32 logits: checks, sizes of grids, and the two launches."""

import ctypes

import torch

from plugins.cuda.launch import launch
from plugins.cuda.library import get_kernel
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
    """See `plugins.sample.sample`; allocates what one launch hands the other."""
    *per_row, out = rest
    num_rows, vocab_size = logits.shape
    if logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits are {logits.dtype} of strides {logits.stride()}; the kernel takes contiguous float32")
    for name, dtype, values in zip((*_ROWS, "out"), (*_DTYPES, torch.int64), rest, strict=True):
        if values.dtype != dtype or values.shape != (num_rows,) or not values.is_contiguous():
            raise ValueError(
                f"{name} is {tuple(values.shape)} {values.dtype}; it must be contiguous ({num_rows},) {dtype}"
            )
    if not num_rows:
        return
    num_chunks = max(1, min(_BLOCKS // num_rows, -(-vocab_size // _CHUNK)))
    bests = torch.empty(num_rows * num_chunks * BEST_BYTES, dtype=torch.uint8, device=logits.device)
    pointers = [values.data_ptr() for values in per_row]
    params = SampleParams(logits.data_ptr(), *pointers, bests.data_ptr(), out.data_ptr(), vocab_size, num_chunks)
    chunks, rows = (get_kernel(SOURCE, f"sample_{part}_kernel", SampleParams) for part in ("chunks", "rows"))
    launch(chunks, (num_chunks, num_rows), THREADS, SHARED_BYTES, params, dependent=True)
    launch(rows, num_rows, THREADS, SHARED_BYTES, params, dependent=True)
