"""Linear layers over weights that are laid out once, at load, for the machine that runs them.

Not a torch.library op: oneDNN's packed weights are opaque tensors and oneDNN allocates the result, so there is
nothing for a caller to allocate. `PackedLinear` is the contract; the engine plan names the implementation.
"""

from typing import Literal, Protocol

import torch

from plugins.linear.onednn import OneDnnFloat32Linear, OneDnnLinear
from plugins.linear.plain import PlainLinear
from plugins.linear.two_part import TwoPartLinear

LinearKind = Literal["onednn", "onednn_float32", "torch"]


class PackedLinear(Protocol):
    """A weight (and bias) ready to be applied to rows."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b: x (T, in) -> (T, out), same dtype, accumulated in float32 or wider."""
        ...


def pack_linear(kind: LinearKind, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
    """Lay out `weight` (out, in) for `kind`; the result keeps no reference to it where it made a copy.

    Raises:
        ValueError: this torch cannot do `kind`, or not in the weight's dtype.
    """
    if kind == "onednn":
        return OneDnnLinear(weight, bias)
    if kind == "onednn_float32":
        return OneDnnFloat32Linear(weight, bias)
    if kind == "torch":
        return PlainLinear(weight, bias)
    raise ValueError(f"linear implementation {kind!r} is not one of 'onednn', 'onednn_float32' or 'torch'")


def pack_head(kind: LinearKind, weight: torch.Tensor) -> PackedLinear:
    """Lay out an LM head (V, H) whose rows and logits are float32, or wider where the weight is.

    Raises:
        ValueError: as `pack_linear`.
    """
    if weight.is_cuda and weight.itemsize == 2:
        return TwoPartLinear(weight)
    return pack_linear(kind, weight.to(torch.promote_types(weight.dtype, torch.float32)))
