"""Sampling on NVIDIA GPUs: checks, the kernel's workspace, and the launch."""

import ctypes
from functools import cache
from typing import NamedTuple

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import processors, require_contiguous, require_shape, run_kernel
from plugins.cuda.source import KernelSource

LOGITS = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_THREADS, _BINS = 256, 16
_SHARED_BYTES = _BINS * _THREADS * 10 + 3072
_MOST_BLOCKS_PER_ROW = 64
TOKENS_PER_BLOCK = 4096  # a row is not cut into smaller parts
_BLOCKS_PER_PROCESSOR = 2  # as many as run at once on every GPU from sm_80 on
_MOST_TOKENS = 1 << 18  # of a vocabulary: see MASS_UNIT


class SampleParams(ctypes.Structure):
    """Mirror of the struct in sample.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "temperature", "top_k", "top_p", "min_p")),
        *((name, ctypes.c_void_p) for name in ("seed", "sample_index", "position", "out")),
        *((name, ctypes.c_void_p) for name in ("partials", "candidates", "counters")),
        ("row_stride", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("rows", "vocab")),
    ]


class _Workspace(NamedTuple):
    """What the blocks of a launch hand each other; launches on one device use the same, so they are one stream's."""

    partials: torch.Tensor
    candidates: torch.Tensor
    counters: torch.Tensor


def source(logits: torch.dtype) -> KernelSource:
    """What is compiled for logits of that dtype."""
    return KernelSource("sample", "sample/sample.cu", (("ELEMENT", LOGITS[logits]),))


def sources() -> list[KernelSource]:
    """Everything that may be launched."""
    return [source(dtype) for dtype in LOGITS]


def sample_cuda(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    sample_index: torch.Tensor,
    position: torch.Tensor,
    out: torch.Tensor,
) -> None:
    rows, vocab = logits.shape
    if not 1 <= vocab <= _MOST_TOKENS:
        raise KernelError(f"sample on CUDA: a vocabulary of {vocab}; the kernel takes 1 to {_MOST_TOKENS}")
    if logits.stride(1) != 1:
        raise KernelError(f"sample on CUDA: logits have strides {logits.stride()}; rows must be contiguous")
    floats = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    integers = {"top_k": top_k, "seed": seed, "sample_index": sample_index, "position": position, "out": out}
    require_shape("sample", (rows,), torch.float32, **floats)
    require_shape("sample", (rows,), torch.int64, **integers)
    require_contiguous("sample", **floats, **integers)
    if rows == 0:
        return
    most_blocks = _BLOCKS_PER_PROCESSOR * processors(logits.device)
    wanted = min(_MOST_BLOCKS_PER_ROW, -(-vocab // TOKENS_PER_BLOCK))
    blocks_per_row = max(1, min(wanted, most_blocks // rows))
    groups = min(rows, most_blocks)
    workspace = _workspace(logits.device, most_blocks)
    params = SampleParams(
        logits.data_ptr(), temperature.data_ptr(), top_k.data_ptr(), top_p.data_ptr(), min_p.data_ptr(),
        seed.data_ptr(), sample_index.data_ptr(), position.data_ptr(), out.data_ptr(),
        *(tensor.data_ptr() for tensor in workspace), logits.stride(0), rows, vocab,
    )  # fmt: skip
    run_kernel(
        source(logits.dtype), "sample_kernel", (blocks_per_row, groups), _THREADS, params, _SHARED_BYTES,
        cooperative=True,
    )  # fmt: skip


@cache
def _workspace(device: torch.device, most_blocks: int) -> _Workspace:
    """Of a device, made at its first launch."""
    return _Workspace(
        torch.zeros(most_blocks * 2 * 2 * _BINS, dtype=torch.int64, device=device),
        torch.zeros(most_blocks * 2, dtype=torch.int64, device=device),
        torch.zeros(most_blocks, dtype=torch.int32, device=device),
    )
