"""Two weights files tensor by tensor, a piece at a time: memory stays small whatever their size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    import torch

PIECE_ELEMENTS = 2**23


class TensorDifference(NamedTuple):
    """One tensor that is in both files and not the same; max_abs_diff is None where the shapes differ."""

    name: str
    a: str  # dtype and shape
    b: str
    max_abs_diff: float | None


@dataclass(frozen=True)
class WeightDifferences:
    num_equal: int
    differ: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_weights(a: Path, b: Path) -> WeightDifferences:
    """Compare two safetensors files.

    Raises:
        EnginewrightError: one of them cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(a, framework="pt") as one, safe_open(b, framework="pt") as two:
            names_a, names_b = list(one.keys()), list(two.keys())
            shared = [name for name in names_a if name in set(names_b)]
            found = [_compare(name, one.get_slice(name), two.get_slice(name)) for name in shared]
    except (SafetensorError, OSError) as error:
        raise EnginewrightError(
            f"{a} or {b}: unreadable safetensors ({error}); copy or build the bundle again"
        ) from error
    differ = tuple(item for item in found if item is not None)
    return WeightDifferences(
        len(shared) - len(differ), differ,
        tuple(name for name in names_a if name not in set(names_b)),
        tuple(name for name in names_b if name not in set(names_a)),
    )  # fmt: skip


def _compare(name: str, a: Any, b: Any) -> TensorDifference | None:
    """None where dtype, shape and every element are equal."""
    kind, other = (f"{item.get_dtype()} {list(item.get_shape())}" for item in (a, b))
    if a.get_shape() != b.get_shape():
        return TensorDifference(name, kind, other, None)
    largest = max_abs_diff(_pieces(a), _pieces(b))
    return None if largest == 0 and kind == other else TensorDifference(name, kind, other, largest)


def max_abs_diff(a: "Iterator[torch.Tensor]", b: "Iterator[torch.Tensor]") -> float:
    """The largest difference of any element, in float64; NaN where either side has a NaN that the other has not."""
    import torch

    largest = torch.zeros((), dtype=torch.float64)
    for one, two in zip(a, b, strict=True):
        both = one.double() - two.double()
        same = (one.isnan() & two.isnan()) | (one == two)  # infinities too
        largest = torch.maximum(largest, both.abs().masked_fill(same, 0).max())
    return float(largest)


def _pieces(tensor: Any) -> "Iterator[torch.Tensor]":
    """A tensor of the file in pieces of whole rows."""
    shape = tensor.get_shape()
    if not shape:
        yield tensor[:]
        return
    row = 1
    for size in shape[1:]:
        row *= size
    rows = max(PIECE_ELEMENTS // max(row, 1), 1)
    for first in range(0, shape[0], rows):
        yield tensor[first : first + rows]
