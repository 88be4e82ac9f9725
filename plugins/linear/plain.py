"""Linear layers as torch does them by default: any dtype, any device, and the reference for the packed ones."""

import torch


class PlainLinear:
    """See `PackedLinear`. Aliases the weight it is given."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)
