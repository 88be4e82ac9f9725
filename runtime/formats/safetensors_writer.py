"""Write a safetensors file tensor by tensor, so that the weights are never all in memory.

Knows the file format only: the caller says beforehand which tensors come, in which order. Equal contents give equal
bytes. The file appears under its name when it is complete.
"""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

FORMAT_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}

# The format asks for 8. With 64 the tensors of a mapped file start at cache lines, as vector loads like.
DATA_ALIGNMENT = 64


class SafetensorsWriter:
    """A context manager: `write` each tensor of `shapes`, in that order, all of one `dtype`. `metadata` is free."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.dtype = dtype
        self._shapes = dict(shapes)
        self._metadata = dict(metadata or {})
        self._names = iter(self._shapes)
        self._partial_path = path.with_name(path.name + ".partial")
        self._file: BinaryIO

    def __enter__(self) -> "SafetensorsWriter":
        self._file = open(self._partial_path, "wb")
        self._file.write(file_header(self._shapes, self.dtype, self._metadata))
        return self

    def write(self, name: str, tensor: "torch.Tensor") -> None:
        """Append one tensor's bytes; it must be the next of `shapes` and have its shape and the file's dtype."""
        expected = next(self._names, None)
        assert name == expected, f"{name} written where {expected} is due"
        assert tuple(tensor.shape) == self._shapes[name], f"{name} has shape {tuple(tensor.shape)}"
        assert str(tensor.dtype) == f"torch.{self.dtype}", f"{name} is {tensor.dtype}"
        import torch

        self._file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            try:
                self._file.close()  # writes what is buffered, which fails again on a full disk
            finally:
                self._partial_path.unlink()
            return
        missing = next(self._names, None)
        assert missing is None, f"{missing} was not written"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial_path.replace(self.path)


def file_header(shapes: Mapping[str, tuple[int, ...]], dtype: str, metadata: dict[str, str]) -> bytes:
    """The length of the JSON index as uint64, then the index, padded with spaces."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": FORMAT_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    index = json.dumps(entries, separators=(",", ":")).encode()
    index += b" " * (-(8 + len(index)) % DATA_ALIGNMENT)
    return len(index).to_bytes(8, "little") + index
