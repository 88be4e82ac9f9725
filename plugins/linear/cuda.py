"""Linear layers on NVIDIA GPUs: our kernel for few rows of small weights, cuBLAS for all others.

Measured on an H100 (bench/notes/ops.md): with up to 16 rows the kernel takes 0.6 to 1.0 of cuBLAS's time for weights
of up to 2 million elements, and more than cuBLAS's for larger ones.
"""

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import ELEMENTS, require_rows
from plugins.linear.plain import PlainLinear
from plugins.linear.skinny import most_rows, skinny_linear

MOST_WEIGHTS = 1 << 21
MOST_ROWS = 16


class CudaLinear(PlainLinear):
    """See `PackedLinear`. Aliases the weight it is given."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Check once that the kernel takes the weight.

        Raises:
            KernelError: its dtype or layout is not the kernel's; use the linear implementation 'torch'.
        """
        if weight.dtype not in ELEMENTS or not weight.is_cuda:
            raise KernelError(
                f"the linear implementation 'cuda' takes bfloat16 or float16 weights on a GPU, not {weight.dtype} on "
                f"{weight.device}; use 'torch'"
            )
        require_rows("linear", weight=weight)
        super().__init__(weight, bias)
        self._most_rows = min(MOST_ROWS, most_rows(weight.device)) if weight.numel() <= MOST_WEIGHTS else 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self._most_rows:
            return super().__call__(x)
        y = x.new_empty(len(x), len(self.weight))
        skinny_linear(x, self.weight, self.bias, y)
        return y
