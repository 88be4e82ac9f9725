"""Weights of an ONNX graph that lie in a safetensors file: where each tensor's bytes start, and how a graph says so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from onnx import StringStringEntryProto, TensorProto

from runtime.errors import EnginewrightError

ONNX_TYPES = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
FORMAT_TYPES = {"F64": TensorProto.DOUBLE, "F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16,
                "BF16": TensorProto.BFLOAT16, "I32": TensorProto.INT32}  # fmt: skip
_HEADER_LENGTH_BYTES = 8


class Stored(NamedTuple):
    """One tensor of the file."""

    onnx_type: int
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the start of the file
    length: int  # in bytes


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, by name.

    Raises:
        EnginewrightError: no such file, or not in this format.
    """
    try:
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
            header = json.loads(file.read(header_length))
        data_start = _HEADER_LENGTH_BYTES + header_length
        return {name: _stored(entry, data_start) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnginewrightError(f"{path}: unreadable safetensors ({error!r}); build it again") from error


def external_initializer(name: str, stored: Stored, location: str) -> TensorProto:
    """An initializer whose bytes are those of `stored` in the file `location`, relative to the graph's."""
    tensor = TensorProto(name=name, data_type=stored.onnx_type, dims=stored.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.append(StringStringEntryProto(key=key, value=str(value)))
    return tensor


def _stored(entry: Mapping[str, Any], data_start: int) -> Stored:
    start, end = entry["data_offsets"]
    return Stored(FORMAT_TYPES[entry["dtype"]], tuple(entry["shape"]), data_start + start, end - start)
