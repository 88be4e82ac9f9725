"""SwiGLU on NVIDIA GPUs: checks and the launch."""

import ctypes

import torch

from plugins.cuda.run import ELEMENTS, require_rows, require_shape, run_kernel
from plugins.cuda.source import KernelSource

_VECTOR, _THREADS, _MOST_BLOCKS = 8, 256, 4096


class SiluMulParams(ctypes.Structure):
    """Mirror of the struct in silu_mul.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("fused", "out")),
        *((name, ctypes.c_int64) for name in ("fused_stride", "out_stride")),
        *((name, ctypes.c_int32) for name in ("rows", "width")),
    ]


def source(element: torch.dtype) -> KernelSource:
    """What is compiled for that dtype."""
    return KernelSource("silu_mul", "silu_mul/silu_mul.cu", (("ELEMENT", ELEMENTS[element]),))


def silu_mul_cuda(fused: torch.Tensor, out: torch.Tensor) -> None:
    rows, width = out.shape
    require_shape("silu_mul", (rows, 2 * width), out.dtype, fused=fused)
    require_rows("silu_mul", fused=fused, out=out)
    if rows == 0:
        return
    blocks = min(_MOST_BLOCKS, -(-rows * width // (_VECTOR * _THREADS)))
    params = SiluMulParams(fused.data_ptr(), out.data_ptr(), fused.stride(0), out.stride(0), rows, width)
    run_kernel(source(out.dtype), "silu_mul_kernel", blocks, _THREADS, params)
