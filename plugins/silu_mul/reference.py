"""SwiGLU as its formula, in float64: the oracle."""

import torch


def silu_mul_reference(fused: torch.Tensor) -> torch.Tensor:
    """Return (T, I) float64."""
    activated, multiplier = fused.double().chunk(2, dim=-1)
    return activated / (1.0 + torch.exp(-activated)) * multiplier
