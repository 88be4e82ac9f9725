"""The gated feed-forward's activation."""

import torch

from plugins.cuda.run import ELEMENTS
from plugins.library import define, implement
from plugins.silu_mul.cpu import silu_mul_cpu
from plugins.silu_mul.cuda import silu_mul_cuda

define("silu_mul(Tensor fused, Tensor(a!) out) -> ()")
implement("silu_mul", "CPU", silu_mul_cpu)


def _silu_mul_on_cuda(fused: torch.Tensor, out: torch.Tensor) -> None:
    """A kernel for 16-bit dtypes; float32 and float64 are for tests and comparisons."""
    run = silu_mul_cuda if out.dtype in ELEMENTS else silu_mul_cpu
    run(fused, out)


implement("silu_mul", "CUDA", _silu_mul_on_cuda)


def silu_mul(fused: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write silu(fused[:, :I]) * fused[:, I:] to `out` and return it.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020), equation 6 (SwiGLU).

    Args:
        fused: (T, 2I), the activated branch (mlp.fc) before the multiplicative one (mlp.gate).
        out: (T, I) same dtype.

    Raises:
        KernelError: on CUDA, in 16-bit dtypes: rows that are no multiple of 16 bytes or not aligned to them.
    """
    torch.ops.enginewright.silu_mul.default(fused, out)
    return out
