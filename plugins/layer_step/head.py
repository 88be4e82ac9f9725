"""The launch of the last norm and the LM head of small models: see head.cuh."""

import ctypes

import torch

from plugins.cuda.run import ELEMENTS, run_kernel
from plugins.cuda.source import KernelSource
from plugins.cuda.tensor_map import MAP_BYTES, TILE_COLUMNS, encode_rows
from plugins.layer_step.weights import LayerSpec

_THREADS = 288
_TILE = 128  # outputs
_BOX_BYTES = _TILE * 2 * TILE_COLUMNS
_STAGES = {8: 10, 16: 10, 32: 8, 64: 4}  # boxes of weights under way, by the rows that a kernel has room for
_MOST_SHARED_BYTES = 227 << 10


class HeadParams(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_uint8 * MAP_BYTES),
        *((name, ctypes.c_void_p) for name in ("hidden", "norm", "normed", "logits")),
        *((name, ctypes.c_int32) for name in ("rows", "outputs", "tiles")),
        ("eps", ctypes.c_float),
        ("unused", ctypes.c_uint32 * 4),
    )


def takes_head(spec: LayerSpec) -> bool:
    """Whether the kernel has room for 64 rows of the model."""
    fits = max(_shared_bytes(spec.hidden_size, rows) for rows in _STAGES) <= _MOST_SHARED_BYTES
    return fits and spec.hidden_size % TILE_COLUMNS == 0 and spec.vocab_size >= _TILE


def head_source(spec: LayerSpec, element: torch.dtype) -> KernelSource:
    """The head's kernels for that model and dtype; for sm_90a alone."""
    stages = ((f"STAGES_{rows}", str(count)) for rows, count in _STAGES.items())
    defines = (("ELEMENT", ELEMENTS[element]), ("HIDDEN", str(spec.hidden_size)), *stages)
    return KernelSource("layer_head", "layer_step/head.cu", defines)


def run_head(
    hidden: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor, normed: torch.Tensor, logits: torch.Tensor,
    spec: LayerSpec, num_processors: int,
) -> None:  # fmt: skip
    """Norm the stream, (R, H) float32, and multiply it by the head, (V, H); writes both results, float32."""
    rows, (outputs, columns) = len(hidden), weight.shape
    bucket = next(bucket for bucket in _STAGES if rows <= bucket)
    tiles = -(-outputs // _TILE)
    boxes = (ctypes.c_uint8 * MAP_BYTES).from_buffer_copy(encode_rows(weight.data_ptr(), outputs, columns, _TILE))
    params = HeadParams(
        boxes, hidden.data_ptr(), norm.data_ptr(), normed.data_ptr(), logits.data_ptr(), rows, outputs, tiles,
        spec.norm_eps,
    )  # fmt: skip
    source, entry = head_source(spec, weight.dtype), f"layer_head_{bucket}_kernel"
    run_kernel(source, entry, min(tiles, num_processors), _THREADS, params, _shared_bytes(columns, bucket))


def _shared_bytes(columns: int, bucket: int) -> int:
    return 2 * bucket * columns * 2 + _STAGES[bucket] * (_BOX_BYTES + 16)
