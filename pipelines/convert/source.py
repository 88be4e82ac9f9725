"""What the conversion needs of a model source, whatever its format."""

from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Protocol

from pipelines.convert.families import Naming, Part
from runtime.spec import ModelSpec

if TYPE_CHECKING:
    import torch


class WeightSource(Protocol):
    """A model's description and its weights, opened for reading.

    names: of all its tensors. optional: of those that carry nothing the checkpoint needs. origin: names it in errors.
    """

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def naming(self) -> Naming: ...
    @property
    def names(self) -> AbstractSet[str]: ...
    @property
    def optional(self) -> AbstractSet[str]: ...
    @property
    def origin(self) -> str: ...

    def read(self, part: Part) -> "torch.Tensor":
        """One tensor in Hugging Face's row order, its shape checked; it may alias the file.

        Raises:
            EnginewrightError: the shape differs, or the data cannot be read.
        """
        ...
