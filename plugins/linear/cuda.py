"""Linear layers on NVIDIA GPUs: our kernel for few rows, cuBLAS for more."""

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import ELEMENTS, require_rows
from plugins.linear.skinny import most_rows, skinny_linear


class CudaLinear:
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
        self.weight = weight
        self.bias = bias
        self._most_rows = most_rows(weight.device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self._most_rows:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        y = x.new_empty(len(x), len(self.weight))
        skinny_linear(x, self.weight, self.bias, y)
        return y
