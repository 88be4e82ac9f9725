"""The gated feed-forward's activation."""

import torch

from plugins.library import define, implement
from plugins.silu_mul.cpu import silu_mul_cpu

define("silu_mul(Tensor fused, Tensor(a!) out) -> ()")
implement("silu_mul", "CPU", silu_mul_cpu)
implement("silu_mul", "CUDA", silu_mul_cpu)


def silu_mul(fused: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write silu(fused[:, :I]) * fused[:, I:] to `out` and return it.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020), equation 6 (SwiGLU).

    Args:
        fused: (T, 2I), the activated branch (mlp.fc) before the multiplicative one (mlp.gate).
        out: (T, I) same dtype.
    """
    torch.ops.enginewright.silu_mul.default(fused, out)
    return out
