"""RMSNorm over the last dimension."""

import torch

from plugins.cuda.run import ELEMENTS
from plugins.library import define, implement
from plugins.rms_norm.cpu import rms_norm_cpu
from plugins.rms_norm.cuda import rms_norm_cuda

define("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()")
implement("rms_norm", "CPU", rms_norm_cpu)


def _rms_norm_on_cuda(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """A kernel where anything is 16-bit; float32 and float64 engines are for tests and comparisons."""
    run = rms_norm_cuda if {x.dtype, weight.dtype, out.dtype} & set(ELEMENTS) else rms_norm_cpu
    run(x, weight, eps, out)


implement("rms_norm", "CUDA", _rms_norm_on_cuda)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
    """Write x / sqrt(mean(x^2) + eps) * weight to `out` and return it.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.

    Args:
        x: (..., H) any float dtype, normalised along H; the mean is taken in float32 or wider.
        weight: (H,) the dtype of `x` or a narrower one.
        eps: added to the mean of squares.
        out: (..., H) the dtype of `weight` or of `x`; may not alias `x`.

    Raises:
        KernelError: on CUDA, in 16-bit dtypes: rows that are no multiple of 16 bytes or not aligned to them.
    """
    torch.ops.enginewright.rms_norm.default(x, weight, eps, out)
    return out
