"""Stored tensors as runs of bytes, and new tensors put together of such runs: what make_weights.py copies.

Nothing here reads a weight: shapes and offsets come from the header of a safetensors file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import EnginewrightError
from runtime.formats.safetensors_writer import FORMAT_NAMES, ITEM_BYTES, file_header

ZEROS = -1  # the source of rows that no file has


class Piece(NamedTuple):
    """`rows` times `length` bytes, `stride` bytes apart, from `offset` of one source on."""

    source: int
    offset: int
    length: int
    stride: int
    rows: int


@dataclass(frozen=True)
class StoredTensor:
    """A row-major tensor of one or two dimensions in a file; a vector has rows of one element."""

    source: int
    offset: int  # of its first byte in the file
    shape: tuple[int, ...]
    item_bytes: int

    @property
    def row_bytes(self) -> int:
        return self.item_bytes * prod(self.shape[1:])

    def rows(self, start: int, stop: int) -> Piece:
        """Rows `start` to `stop`."""
        length = (stop - start) * self.row_bytes
        return Piece(self.source, self.offset + start * self.row_bytes, length, length, 1)

    def columns(self, start: int, stop: int) -> Piece:
        """Columns `start` to `stop` of every row."""
        length = (stop - start) * self.item_bytes
        return Piece(self.source, self.offset + start * self.item_bytes, length, self.row_bytes, self.shape[0])


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write: its bytes are those of its pieces, one after the other."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def zero_rows(count: int, row_bytes: int) -> tuple[Piece, ...]:
    return (Piece(ZEROS, 0, count * row_bytes, count * row_bytes, 1),) if count else ()


def stored_tensors(path: Path, source: int, dtype: str) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file of one dtype; `source` is the file's number in the plan.

    Raises:
        EnginewrightError: it cannot be read, or a tensor has another dtype.
    """
    try:
        with path.open("rb") as file:
            header_len = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(header_len))
        entries.pop("__metadata__", None)
        dtypes = {name: entry["dtype"] for name, entry in entries.items()}
        places = {name: (tuple(entry["shape"]), entry["data_offsets"][0]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnginewrightError(f"{path}: unreadable safetensors ({error!r}); build it again") from error
    for name, stored in dtypes.items():
        if stored != FORMAT_NAMES[dtype]:
            raise EnginewrightError(f"{path}: {name} is {stored}, not {FORMAT_NAMES[dtype]}; build it again")
    begin = 8 + header_len
    item_bytes = ITEM_BYTES[dtype]
    return {name: StoredTensor(source, begin + offset, shape, item_bytes) for name, (shape, offset) in places.items()}


def planned_file(path: str, tensors: Mapping[str, NewTensor], dtype: str, metadata: dict[str, str]) -> dict[str, Any]:
    """One file of make_weights.py's plan, all but its sha256."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    header = file_header(shapes, dtype, metadata)[8:]
    pieces = [list(piece) for tensor in tensors.values() for piece in tensor.pieces]
    size = 8 + len(header) + sum(piece[2] * piece[4] for piece in pieces)
    return {"path": path, "size": size, "header": header.decode(), "pieces": pieces}
