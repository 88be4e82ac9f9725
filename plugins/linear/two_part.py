"""An LM head over 16-bit weights with float32 rows in and float32 logits out, on CUDA.

A float32 row is split into the nearest 16-bit row and what that leaves; both go through one product, so the weights are
read once, and the sum of both has about twice the bits of either.
"""

import torch

from plugins.linear.skinny import skinny_linear

MOST_ROWS = 4  # of our kernel: it adds the parts up itself, but from 8 rows on cuBLAS was measured to be faster


class TwoPartLinear:
    """x (R, in) float32 -> (R, out) float32. Aliases the weight (out, in), bfloat16 or float16, that it is given."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        fits = weight.stride(1) == 1 and weight.shape[1] % 8 == 0 and weight.data_ptr() % 16 == 0
        self._most_rows = MOST_ROWS if fits else 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        high = x.to(self.weight.dtype)
        low = (x - high.float()).to(self.weight.dtype)
        both = torch.cat([high, low])
        if len(x) > self._most_rows:
            sums = torch.mm(both, self.weight.t(), out_dtype=torch.float32)
            return sums[: len(x)] + sums[len(x) :]
        logits = x.new_empty(len(x), len(self.weight))
        skinny_linear(both, self.weight, None, logits, parts=2)
        return logits
