"""The sum in place, then RMSNorm."""

import torch

from plugins.rms_norm.cpu import rms_norm_cpu


def residual_rms_norm_cpu(
    hidden: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> None:
    hidden += delta
    rms_norm_cpu(hidden, weight, eps, out)
