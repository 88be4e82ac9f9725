"""How a layer is cut into blocks, and what a block takes: from its sizes alone, so that a row's result is too."""

from typing import NamedTuple

import torch

from plugins.cuda.run import ELEMENTS
from plugins.layer_step.weights import LayerSpec

WARPS, THREADS = 8, 256
STEP = 32  # columns
STAGES = 6  # of a warp's ring
ROW_BUCKETS = (8, 16, 32, 64)
MOST_ROWS = ROW_BUCKETS[-1]
SHARED_BYTES = 227 << 10  # that a block may have from sm_90 on
PROCESSOR_BYTES = 228 << 10  # of all of a processor's blocks
SMALL_WEIGHTS = 3 << 20  # of a layer whose weights are read again from L2 sooner than more rows of x
HEAD_OUTPUTS = 32768  # of one that is mostly an LM head
_SLOT_BYTES = 1024


class Tiling(NamedTuple):
    """A layer's cut; see linear.cuh."""

    row_warps: int  # of 16 outputs each; the other warps take other columns
    cluster: int  # blocks, which take other columns as well

    def tiles(self, outputs: int) -> int:
        return -(-outputs // (16 * self.row_warps))

    def squares(self, outputs: int) -> int:
        """In how many parts a row's squares are left."""
        return self.tiles(outputs) * max(self.cluster, self.row_warps // 4)

    def most_steps(self, columns: int) -> int:
        """Steps of the block with the most columns."""
        return -(-(columns // STEP) // self.cluster)


def tiling(outputs: int, columns: int) -> Tiling:
    """The cut of a layer on a GPU with clusters: the best of those tried on an H100 (bench/notes/layer_step.md)."""
    is_small = outputs * columns < SMALL_WEIGHTS
    if columns <= 1024 and (outputs >= HEAD_OUTPUTS or (is_small and outputs >= 2048)):
        return Tiling(4, 1)
    if is_small:
        return Tiling(2 if columns <= 1024 else 1, 1)
    return Tiling(8, 4)  # where the GPU does not take wide.cuh


def is_wide(outputs: int, columns: int, mode: str, head_dim: int) -> bool:
    """Whether a layer goes through wide.cuh where the GPU takes it: a tile there is 128 outputs, of whole heads."""
    if outputs * columns < SMALL_WEIGHTS or columns % 64 or outputs % 16:
        return False
    return mode in ("residual", "gated", "logits") or (mode == "qkv" and head_dim in (32, 64, 128))


def block_rows(cut: Tiling, outputs: int, columns: int, rows: int, parts: int = 1) -> int:
    """How many rows a block has: of ROW_BUCKETS. Does not change a row's result."""
    wanted = rows
    if outputs * columns < SMALL_WEIGHTS and rows > 8:
        wanted = 8 if rows <= 32 else 16
    elif outputs >= HEAD_OUTPUTS and columns <= 1024:
        wanted = min(rows, 16)
    fitting = [bucket for bucket in ROW_BUCKETS if shared_bytes(cut, columns, bucket, parts, STAGES) <= SHARED_BYTES]
    return next((bucket for bucket in fitting if wanted <= bucket), max(fitting, default=ROW_BUCKETS[0]))


def head_tiling(head_dim: int) -> Tiling | None:
    """The cut of the layer whose outputs are normed by heads: a tile is a head. None where no cut is."""
    return Tiling(head_dim // 16, head_dim // 16) if head_dim in (32, 64, 128) else None


def supports(spec: LayerSpec, dtype: torch.dtype, rows: int) -> str | None:
    """Return why steps of so many rows cannot go through these launches, or None where they can."""
    if dtype not in ELEMENTS:
        return f"dtype is {dtype}; the launches of a layer compute in bfloat16 or float16"
    if spec.head_dim % 16:
        return f"head_dim is {spec.head_dim}; the launches of a layer take multiples of 16"
    for name, (outputs, columns) in spec.linears.items():
        if columns % STEP or (name != "head" and outputs % 16):
            return f"{name} is {outputs} x {columns}; the launches of a layer take multiples of 16 x {STEP}"
        cut = head_tiling(spec.head_dim) if name == "qkv" and spec.qk_norm else None
        cut, parts = cut or tiling(outputs, columns), 2 if name == "head" else 1
        if shared_bytes(cut, columns, block_rows(cut, outputs, columns, rows, parts), parts, STAGES) > SHARED_BYTES:
            return f"rows of {columns} columns leave no room in shared memory for weights"
    return None


def shared_bytes(cut: Tiling, columns: int, bucket: int, parts: int = 1, tiles_each: int = 1) -> int:
    """Shared memory of a block: SharedLayout of linear.cuh, with as many stages as its warps have steps."""
    pitch = _round_up(2 * STEP * cut.most_steps(columns), 128) + 64
    steps = -(-cut.most_steps(columns) // (WARPS // cut.row_warps)) * tiles_each
    sums = 8 * WARPS * (2 * bucket + 8) * 4 * (2 if cut.cluster > 1 else 1)
    factors = max(bucket, 32) * 4 + 128 + 8 * bucket * cut.cluster  # and barriers, and the squares of heads
    return _round_up(parts * bucket * pitch, 128) + sums + factors + min(STAGES, steps) * WARPS * _SLOT_BYTES


def clusters(cut: Tiling, outputs: int, bucket: int, block_bytes: int, groups: int, processors: int) -> int:
    """Clusters of one group of rows: all run at once, each with an equal number of tiles."""
    tiles = cut.tiles(outputs)
    blocks_each = max(1, PROCESSOR_BYTES // (block_bytes + 1024))
    at_once = max(1, processors * min(blocks_each, 2 if bucket > 16 else 3) // (cut.cluster * groups))
    rounds = -(-tiles // at_once)
    return -(-tiles // rounds)


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
