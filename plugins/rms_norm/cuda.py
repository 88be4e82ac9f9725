"""RMSNorm on NVIDIA GPUs: checks and the launch, also of the form that adds to the residual stream first."""

import ctypes

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import ELEMENTS, require_rows, run_kernel
from plugins.cuda.source import KernelSource

_VECTOR, _MOST_THREADS = 8, 512
_PARTIAL_BYTES = 32 * 4


class RmsNormParams(ctypes.Structure):
    """Mirror of the struct in rms_norm.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "delta", "weight", "out")),
        *((name, ctypes.c_int64) for name in ("x_stride", "delta_stride", "out_stride")),
        ("width", ctypes.c_int32),
        ("eps", ctypes.c_float),
    ]


def source(element: torch.dtype) -> KernelSource:
    """What is compiled for engines of that 16-bit dtype."""
    return KernelSource("rms_norm", "rms_norm/rms_norm.cu", (("ELEMENT", ELEMENTS[element]),))


def rms_norm_cuda(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    width = x.shape[-1]
    launch_norm(x.reshape(-1, width), None, weight, eps, out.view(-1, width))


def launch_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> None:
    """x (T, H) += delta (T, H) where there is one; out (T, H) becomes the norm of x.

    Raises:
        KernelError: shapes, dtypes or strides that the kernel does not take.
    """
    rows, width = x.shape
    if out.shape != x.shape or weight.shape != (width,) or (delta is not None and delta.shape != x.shape):
        raise KernelError(
            f"rms_norm: x {tuple(x.shape)}, out {tuple(out.shape)} and weight {tuple(weight.shape)} do not fit"
        )
    element = next((t.dtype for t in (x, weight, out, delta) if t is not None and t.dtype in ELEMENTS), torch.bfloat16)
    entry = _entry(x.dtype, weight.dtype, out.dtype, element)
    if delta is not None and delta.dtype != element:
        raise KernelError(f"rms_norm on CUDA: the delta is {delta.dtype}; it must be {element}")
    require_rows("rms_norm", x=x, weight=weight, out=out, **({} if delta is None else {"delta": delta}))
    if width % _VECTOR:
        raise KernelError(f"rms_norm on CUDA: rows of {width}; it must be a multiple of {_VECTOR}")
    if rows == 0:
        return
    params = RmsNormParams(
        x.data_ptr(), None if delta is None else delta.data_ptr(), weight.data_ptr(), out.data_ptr(), x.stride(0),
        0 if delta is None else delta.stride(0), out.stride(0), width, eps,
    )  # fmt: skip
    threads = min(_MOST_THREADS, -(-width // _VECTOR // 32) * 32)
    run_kernel(source(element), entry, rows, threads, params, _PARTIAL_BYTES + 4 * width)


def _entry(x: torch.dtype, weight: torch.dtype, out: torch.dtype, element: torch.dtype) -> str:
    entries = {
        (element, element, element): "rms_norm_narrow_kernel",
        (torch.float32, element, element): "rms_norm_wide_kernel",
        (torch.float32, element, torch.float32): "rms_norm_wide_out_kernel",
        (torch.float32, torch.float32, torch.float32): "rms_norm_float_kernel",
    }
    if (x, weight, out) not in entries:
        raise KernelError(f"rms_norm on CUDA: no kernel for rows of {x}, a weight of {weight} and an output of {out}")
    return entries[x, weight, out]
