"""Launches of the layers whose weights take longer than anything else; see wide.cuh. sm_90 alone."""

import ctypes
from typing import NamedTuple

import torch

from plugins.cuda.run import ELEMENTS, run_kernel
from plugins.cuda.source import KernelSource
from plugins.cuda.tensor_map import MAP_BYTES, TILE_COLUMNS, encode_tensor
from plugins.layer_step.layout import PROCESSOR_BYTES, ROW_BUCKETS
from plugins.layer_step.params import MODES, LayerLinearParams, WideLinearParams

ARCHS = ("sm_90a",)
OUTPUTS = 128  # of a tile
THREADS = 288
SHARED = ("qkv", "residual")
MOST_CLUSTER = 8
MOST_STAGES = 8
_LEAST_BLOCKS = 128  # that keep memory busy
HALF, WHOLE = PROCESSOR_BYTES // 2 - 1024, PROCESSOR_BYTES - 1024
# Of a block: so that those of the next launch find room beside.
BLOCK_BYTES = {"qkv": HALF, "residual": HALF, "gated": 126 << 10, "logits": WHOLE}
_WEIGHT_BYTES = OUTPUTS * 2 * TILE_COLUMNS
_PITCH = 4 * (OUTPUTS + 4)
_BARRIER_BYTES = 8 * (2 * MOST_STAGES + 1)


class Wide(NamedTuple):
    """How such a layer is cut: from its sizes alone, so that a row's result is too."""

    mode: str  # one of MODES
    cluster: int = 1  # blocks, which share a tile where there are several

    @property
    def boxes(self) -> int:
        """Of OUTPUTS, that make a tile."""
        return 2 if self.mode == "logits" else 1

    def tiles(self, outputs: int) -> int:
        return -(-outputs // (OUTPUTS * self.boxes))

    def squares(self, outputs: int) -> int:
        """In how many parts a row's squares are left."""
        return self.tiles(outputs)


def wide_cut(outputs: int, columns: int, mode: str) -> Wide:
    """The cut of a layer that does `mode` of MODES with its sums; of these, SHARED share tiles."""
    if mode not in SHARED:
        return Wide(mode)
    tiles = -(-outputs // OUTPUTS)
    cluster = 2
    while cluster < MOST_CLUSTER and tiles * cluster < _LEAST_BLOCKS and columns >= 4 * cluster * TILE_COLUMNS:
        cluster *= 2
    return Wide(mode, cluster)


def wide_source(element: torch.dtype) -> KernelSource:
    """The kernels for that dtype; for the architectures of `ARCHS`."""
    defines = (("ELEMENT", ELEMENTS[element]), ("RING_STAGES", "1"))
    return KernelSource("layer_wide", "layer_step/wide_linear.cu", defines)


def run_wide(params: LayerLinearParams, cut: Wide, dtype: torch.dtype, num_processors: int) -> None:
    """Launch one layer, cut so."""
    bucket = next(bucket for bucket in ROW_BUCKETS if params.rows <= bucket)
    params.tiles = cut.tiles(params.outputs)
    at_once = num_processors * (PROCESSOR_BYTES // (BLOCK_BYTES[cut.mode] + 1024))
    rounds = -(-params.tiles // at_once) if cut.cluster == 1 else 1
    clusters = -(-params.tiles // rounds)
    chunks = -(-params.columns // TILE_COLUMNS // cut.cluster) * -(-params.tiles // clusters)
    stages = num_stages(cut, bucket, params.parts, chunks)
    wide = WideLinearParams(weight=_weight_map(params), x=_x_map(params, bucket), layer=params, stages=stages)
    run_kernel(
        wide_source(dtype), f"layer_wide_{MODES[params.mode]}_{bucket}_kernel", clusters * cut.cluster, THREADS, wide,
        shared_bytes(cut, bucket, params.parts, stages), cluster=cut.cluster,
    )  # fmt: skip


def num_stages(cut: Wide, bucket: int, parts: int, chunks: int) -> int:
    """Stages of the ring: as many as fit, no more than a block has chunks of columns."""
    left = BLOCK_BYTES[cut.mode] - shared_bytes(cut, bucket, parts, 0)
    stage_bytes = _stage_bytes(cut, bucket, parts)
    fitting = left // stage_bytes
    least = -(-bucket * _PITCH // stage_bytes) if cut.cluster > 1 else 2
    return max(least, min(fitting, MOST_STAGES, chunks))


def shared_bytes(cut: Wide, bucket: int, parts: int, stages: int) -> int:
    """Shared memory of a block: WideShared of wide.cuh."""
    sums = bucket * _PITCH if cut.cluster > 1 else 0
    return stages * _stage_bytes(cut, bucket, parts) + sums + 4 * max(bucket, 32) + _BARRIER_BYTES


def _stage_bytes(cut: Wide, bucket: int, parts: int) -> int:
    return cut.boxes * _WEIGHT_BYTES + parts * bucket * 2 * TILE_COLUMNS


def _weight_map(params: LayerLinearParams) -> ctypes.Array[ctypes.c_uint8]:
    """The weights as (heads, groups, 2, 8, columns), from which a box takes 128 outputs in pair_of's order."""
    row, mode = 2 * params.columns, MODES[params.mode]
    apart, groups, heads, box_groups = 8, params.outputs // 16, 1, 8  # rows between halves; of groups of 16 outputs
    group_rows, head_rows = 16, params.outputs
    if mode == "gated":
        apart, group_rows = params.outputs // 2, 8
    elif mode == "qkv":
        apart, group_rows, head_rows = params.head_dim // 2, 8, params.head_dim
        groups, heads = params.head_dim // 16, params.outputs // params.head_dim
        box_groups = min(groups, 8)
    sizes = (params.columns, 8, 2, groups, heads)
    strides = (row, apart * row, group_rows * row, head_rows * row)
    box = (TILE_COLUMNS, 8, 2, box_groups, 8 // box_groups)
    return _map(encode_tensor(params.weight, sizes, strides, box, 256))


def _x_map(params: LayerLinearParams, bucket: int) -> ctypes.Array[ctypes.c_uint8]:
    row = 2 * params.columns
    sizes = (params.columns, params.rows, params.parts, 1, 1)
    whole = row * params.rows
    box = (TILE_COLUMNS, bucket, params.parts, 1, 1)
    return _map(encode_tensor(params.x, sizes, (row, whole, whole * params.parts, whole * params.parts), box))


def _map(encoded: bytes) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * MAP_BYTES).from_buffer_copy(encoded)
