"""Linear layers over oneDNN's blocked weight layout.

torch reorders a plain weight at every call or hands it to a general BLAS; a weight packed once is 1.5 to 3.5 times
as fast at 1 to 512 rows on the CPU of bench/results/.
"""

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class OneDnnLinear:
    """See `PackedLinear`. Copies the weight into the packed layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        _require_dtype(weight)
        if not torch.backends.mkldnn.is_available():
            raise ValueError("this torch was built without oneDNN; use the linear implementation 'torch'")
        if weight.dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
            raise ValueError("oneDNN has no float16 products for this CPU; use the linear implementation 'torch'")
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")
        return result


class OneDnnFloat32Linear:
    """See `PackedLinear`. Packs a float32 copy of the weight, widens the rows and rounds the result to their dtype.

    For 16-bit weights on a CPU without products of their dtype: as fast and as large as float32, 4 bytes a weight, and
    rounded once, after a float32 sum.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        _require_dtype(weight)
        self._linear = OneDnnLinear(weight.float(), None if bias is None else bias.float())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x.float()).to(x.dtype)


def _require_dtype(weight: torch.Tensor) -> None:
    if weight.dtype not in _DTYPES:
        raise ValueError(f"oneDNN linear takes float32, bfloat16 or float16 weights, not {weight.dtype}; use 'torch'")
