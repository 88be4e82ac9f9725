"""A sublayer's result onto the residual stream, and the next sublayer's RMSNorm of that: one op for two passes."""

import torch

from plugins.cuda.run import ELEMENTS
from plugins.library import define, implement
from plugins.residual_rms_norm.cpu import residual_rms_norm_cpu
from plugins.residual_rms_norm.cuda import residual_rms_norm_cuda

define("residual_rms_norm(Tensor(a!) hidden, Tensor delta, Tensor weight, float eps, Tensor(b!) out) -> ()")
implement("residual_rms_norm", "CPU", residual_rms_norm_cpu)


def _residual_rms_norm_on_cuda(
    hidden: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> None:
    """A kernel where the sublayer is 16-bit; float32 and float64 engines are for tests and comparisons."""
    run = residual_rms_norm_cuda if delta.dtype in ELEMENTS else residual_rms_norm_cpu
    run(hidden, delta, weight, eps, out)


implement("residual_rms_norm", "CUDA", _residual_rms_norm_on_cuda)


def residual_rms_norm(
    hidden: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> torch.Tensor:
    """Add `delta` to `hidden` in place, write rms_norm(hidden, weight, eps) to `out` and return it.

    Args:
        hidden: (T, H) float32, or wider where the engine is; the residual stream.
        delta: (T, H), any dtype no wider than `hidden`.
        weight, eps, out: as in `plugins.rms_norm`, of `hidden`.
    """
    torch.ops.enginewright.residual_rms_norm.default(hidden, delta, weight, eps, out)
    return out
