"""An LM head over 16-bit weights with float32 rows in and float32 logits out, on CUDA.

A float32 row is split into the nearest 16-bit row and what that leaves; both go through one product, so the weights are
read once, and the sum of both has about twice the bits of either.
"""

import torch


class TwoPartLinear:
    """x (R, in) float32 -> (R, out) float32. Aliases the weight (out, in), bfloat16 or float16, that it is given."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        high = x.to(self.weight.dtype)
        low = (x - high.float()).to(self.weight.dtype)
        both = torch.mm(torch.cat([high, low]), self.weight.t(), out_dtype=torch.float32)
        return both[: len(x)] + both[len(x) :]
