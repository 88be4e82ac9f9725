"""RMSNorm over the last dimension."""

import torch

from plugins.library import define, implement
from plugins.rms_norm.cpu import rms_norm_cpu

define("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()")
implement("rms_norm", "CPU", rms_norm_cpu)
implement("rms_norm", "CUDA", rms_norm_cpu)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
    """Write x / sqrt(mean(x^2) + eps) * weight to `out` and return it.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.

    Args:
        x: (..., H) any float dtype, normalised along H; the mean is taken in float32 or wider.
        weight: (H,) the dtype of `x` or a narrower one.
        eps: added to the mean of squares.
        out: (..., H) the dtype of `weight` or of `x`; may not alias `x`.
    """
    torch.ops.enginewright.rms_norm.default(x, weight, eps, out)
    return out
