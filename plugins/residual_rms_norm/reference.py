"""The sum and its RMSNorm as their formulas, in float64: the oracle."""

import torch

from plugins.rms_norm.reference import rms_norm_reference


def residual_rms_norm_reference(
    hidden: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the new residual stream and its norm, (T, H) float64 each."""
    total = hidden.double() + delta.double()
    return total, rms_norm_reference(total, weight, eps)
