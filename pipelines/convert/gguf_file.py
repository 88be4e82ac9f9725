"""Read a GGUF file: metadata with checked types, and tensors dequantized one at a time.

Block formats and dequantization are the gguf library's. Knows nothing of models: pipelines/convert/gguf_source.py
reads meaning into keys and names.
"""

import mmap
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.convert.gguf_header import TensorEntry, parse_header
from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class GgufFile:
    """A GGUF file opened for reading; every tensor is known to lie within it.

    Raises:
        EnginewrightError: not a GGUF file, truncated, damaged, or of a tensor type the gguf library does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                if not file.read(1):
                    raise EnginewrightError(f"{path}: is empty, not a GGUF file; fetch it again")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise EnginewrightError(
                f"{path}: cannot be read ({error.strerror}); check the path and permissions"
            ) from error
        self.metadata, self.tensors = parse_header(self._data, path)
        for name, entry in self.tensors.items():
            end = entry.offset + self._num_bytes(name, entry)
            if end > len(self._data):
                raise EnginewrightError(
                    f"{path}: tensor {name} ends at byte {end} but the file has {len(self._data)}; "
                    "it is truncated, fetch it again"
                )

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The metadata value of `key`, which must be a `kind`, or `default` where the key is absent."""
        if key not in self.metadata:
            return default
        value = self.metadata[key]
        if type(value) is not kind:
            raise EnginewrightError(
                f"{self.path}: metadata {key} is {value!r:.60}, not a {kind.__name__}; convert the model to GGUF again"
            )
        return value

    def require(self, key: str, kind: type) -> Any:
        """The metadata value of `key`.

        Raises:
            EnginewrightError: it is absent, or not a `kind`.
        """
        if key not in self.metadata:
            raise EnginewrightError(f"{self.path}: metadata key {key} is missing; convert the model to GGUF again")
        return self.get(key, kind)

    def read(self, name: str) -> "npt.NDArray[np.float32]":
        """Dequantize one tensor to float32, outermost dimension first. An F32 tensor is a view of the mapped file."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        self._data.madvise(mmap.MADV_DONTNEED)  # else every page that was read would stay, to the size of the file
        entry = self.tensors[name]
        kind = GGMLQuantizationType(entry.type_id)
        raw = np.frombuffer(self._data, np.uint8, self._num_bytes(name, entry), entry.offset)
        try:
            values = dequantize(raw.reshape(quant_shape_to_byte_shape(entry.shape, kind)), kind)
        except NotImplementedError as error:
            raise EnginewrightError(
                f"{self.path}: tensor {name} has type {kind.name}, which cannot be dequantized; "
                "give the model in another quantization"
            ) from error
        return np.asarray(values, np.float32).reshape(entry.shape)

    def _num_bytes(self, name: str, entry: TensorEntry) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block_len, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(entry.type_id)]
        except (ValueError, KeyError) as error:
            raise EnginewrightError(
                f"{self.path}: tensor {name} has type {entry.type_id}, which the installed gguf library does not know; "
                "update it, or fetch the file again"
            ) from error
        if entry.shape[-1] % block_len:
            raise EnginewrightError(
                f"{self.path}: tensor {name} has rows of {entry.shape[-1]}, not a multiple of its type's block of "
                f"{block_len}; the header is damaged, fetch it again"
            )
        return int(prod(entry.shape) // block_len * block_bytes)
