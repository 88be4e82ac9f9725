"""Parse the header of a GGUF file: metadata and the table of tensors, every count checked against the file's size.

Parsed here rather than by the gguf library, whose reader takes counts and offsets on trust: a truncated file ends in
an array error there. Knows no block formats; pipelines/convert/gguf_file.py does.
"""

import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from runtime.errors import EnginewrightError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

# The format's value types that are one number, as `struct` codes.
_SCALAR_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Buffer(Protocol):
    """Bytes that can be sliced without being read as a whole, such as a mapped file."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes: ...


class TensorEntry(NamedTuple):
    """One tensor: shape outermost dimension first (the file has it the other way round), type, offset in the file."""

    shape: tuple[int, ...]
    type_id: int
    offset: int


class Header(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]


def parse_header(data: Buffer, path: Path) -> Header:
    """Parse the header; `path` names the file in errors.

    A float32 value becomes the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06.

    Raises:
        EnginewrightError: not a GGUF file, or a header that its size cannot hold.
    """
    cursor = _Cursor(data, path)
    magic = cursor.take(len(MAGIC))
    if magic != MAGIC:
        raise cursor.fail(f"starts with {magic!r} instead of {MAGIC!r}: it is not a GGUF file")
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise cursor.fail(f"is GGUF version {version}, or big-endian; versions 2 and 3, little-endian, can be read")
    num_tensors = cursor.count("tensors", min_bytes=24)
    num_keys = cursor.count("metadata keys", min_bytes=12)
    metadata = {}
    for _ in range(num_keys):
        key = cursor.string()
        metadata[key] = cursor.value(key)
    entries = [_tensor_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two; the header is damaged")
    start = cursor.position + -cursor.position % alignment
    return Header(metadata, {name: entry._replace(offset=entry.offset + start) for name, entry in entries})


class _Cursor:
    """A position in the header. Nothing is read or allocated beyond the end of the file."""

    def __init__(self, data: Buffer, path: Path) -> None:
        self._data = data
        self._path = path
        self.position = 0

    def fail(self, text: str) -> EnginewrightError:
        return EnginewrightError(f"{self._path}: {text}")

    def take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > len(self._data):
            raise self.fail(
                f"the header goes on to byte {end} but the file has {len(self._data)}; it is truncated, fetch it again"
            )
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def scalar(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def scalars(self, code: str, count: int) -> list[Any]:
        layout = f"<{count}{code}"
        values = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return [_shortest_decimal(value) for value in values] if code == "f" else list(values)

    def count(self, what: str, min_bytes: int) -> int:
        """A 64-bit count of things that take at least `min_bytes` each."""
        count = int(self.scalar("Q"))
        left = len(self._data) - self.position
        if count * min_bytes > left:
            raise self.fail(
                f"the header claims {count} {what} but {left} bytes are left; "
                "it is damaged or truncated, fetch it again"
            )
        return count

    def string(self) -> str:
        return self.take(self.count("characters", min_bytes=1)).decode("utf-8", errors="replace")

    def value(self, key: str) -> Any:
        kind = self.scalar("I")
        if kind == _STRING:
            return self.string()
        if kind in _SCALAR_CODES:
            return self.scalar(_SCALAR_CODES[kind])
        item_kind = self.scalar("I") if kind == _ARRAY else None
        if item_kind == _STRING:
            return [self.string() for _ in range(self.count(f"strings in {key}", min_bytes=8))]
        if item_kind in _SCALAR_CODES:
            code = _SCALAR_CODES[item_kind]
            return self.scalars(code, self.count(f"numbers in {key}", min_bytes=struct.calcsize("<" + code)))
        raise self.fail(f"metadata {key!r:.60} has type {kind}/{item_kind}; the header is damaged, fetch it again")


def _shortest_decimal(value: float) -> float:
    import numpy as np

    return float(str(np.float32(value)))


def _tensor_entry(cursor: _Cursor) -> tuple[str, TensorEntry]:
    name = cursor.string()
    num_dimensions = cursor.scalar("I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(
            f"tensor {name!r:.60} has {num_dimensions} dimensions, not 1 to {MAX_DIMENSIONS}; fetch it again"
        )
    shape = tuple(cursor.scalars("Q", num_dimensions)[::-1])
    if prod(shape) < 1:
        raise cursor.fail(f"tensor {name!r:.60} has shape {shape}; the header is damaged, fetch it again")
    return name, TensorEntry(shape, cursor.scalar("I"), cursor.scalar("Q"))
