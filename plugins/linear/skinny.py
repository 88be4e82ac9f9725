"""Linear layers over at most 64 rows on NVIDIA GPUs: sizes, workspace, checks, and the launch."""

import ctypes
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import ELEMENTS, processors, require_rows, run_kernel
from plugins.cuda.source import KernelSource

MOST_ROWS = 64
_THREADS = 128
_WARP_ROWS, _WARP_COLUMNS, _MOST_STAGES = 32, 64, 8
_BUCKETS = (8, 16, 32, 64)
_FEWEST_UNITS = 3  # of a block: fewer cost more to add up than they save
_MOST_TILES = 8192
# SKINNY_SHARED_LIMIT of skinny.cuh, by compute capability.
_SHARED_LIMITS = {(9, 0): 220 << 10, (10, 0): 220 << 10, (8, 0): 160 << 10}
_OTHER_SHARED_LIMIT = 98 << 10


class SkinnyParams(ctypes.Structure):
    """Mirror of the struct in skinny.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "partials", "counters")),
        *((name, ctypes.c_int64) for name in ("x_stride", "weight_stride", "y_stride")),
        *((name, ctypes.c_int32) for name in ("rows", "in", "out", "parts", "is_float", "unused")),
    ]


class _Tiling(NamedTuple):
    """How a layer is cut; see skinny.cuh. Depends on the layer alone, so that a row's result does."""

    row_warps: int
    bucket: int

    @property
    def tile(self) -> int:
        return _WARP_ROWS * self.row_warps

    @property
    def columns(self) -> int:
        return _WARP_COLUMNS * 4 // self.row_warps

    def shared_bytes(self, limit: int) -> int:
        """Of a block whose stages may take up to `limit`; 0 where two do not fit."""
        stage = (self.tile + self.bucket) * (2 * self.columns + 16)
        sums = 4 // self.row_warps * self.bucket * (self.tile + 4) * 4 + 16
        stages = min(_MOST_STAGES, (limit - sums) // stage)
        return stages * stage + sums if stages >= 2 else 0


def source(element: torch.dtype, row_warps: int) -> KernelSource:
    """What is compiled for weights of that dtype and tiles of that many times 32 rows."""
    defines = (("ELEMENT", ELEMENTS[element]), ("TILE_WARPS", str(row_warps)))
    return KernelSource("skinny", "linear/skinny.cu", defines)


def sources_for(element: torch.dtype, outs: Iterable[int]) -> list[KernelSource]:
    """What layers with that many outputs each launch."""
    return [source(element, row_warps) for row_warps in sorted({row_warps_of(out) for out in outs})]


def row_warps_of(out: int) -> int:
    """Large tiles read x less often, small ones need fewer sums of parts: as large as give every processor some."""
    return 4 if out >= 12288 else 2 if out >= 5120 else 1


def most_rows(device: torch.device) -> int:
    """How many rows the kernels of a device take: of large ones two stages must fit its shared memory."""
    fitting = [bucket for bucket in _BUCKETS if _Tiling(1, bucket).shared_bytes(_shared_limit(device))]
    return max(fitting)


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, parts: int = 1
) -> None:
    """Write x W^T + b to `y`; x (M, in), weight (out, in), bias (out,), y (M / parts, out) of x's dtype or float32.

    parts: 2 where rows r and r + M / 2 of x are parts of one row, whose results are added.

    Raises:
        KernelError: more rows than the kernel takes, or tensors that do not fit each other or its alignment.
    """
    rows, width = x.shape
    out = len(weight)
    if parts not in (1, 2) or rows % parts or weight.shape[1] != width or y.shape != (rows // parts, out):
        raise KernelError(
            f"linear: x {tuple(x.shape)} in {parts} parts, weight {tuple(weight.shape)} and y {tuple(y.shape)} "
            "do not fit"
        )
    if x.dtype != weight.dtype or x.dtype not in ELEMENTS or y.dtype not in (x.dtype, torch.float32):
        raise KernelError(f"linear on CUDA: no kernel for x {x.dtype}, weight {weight.dtype} and y {y.dtype}")
    if bias is not None and (bias.shape != (out,) or bias.dtype != weight.dtype or not bias.is_contiguous()):
        raise KernelError(f"linear: bias is {tuple(bias.shape)} {bias.dtype}; it must be ({out},) {weight.dtype}")
    require_rows("linear", x=x, weight=weight)
    if y.stride(1) != 1:
        raise KernelError(f"linear on CUDA: y has strides {y.stride()}; rows must be contiguous")
    if rows == 0:
        return
    _launch(x, weight, bias, y, parts)


def _launch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, parts: int) -> None:
    (rows, width), out, device = x.shape, len(weight), x.device
    bucket = next((bucket for bucket in _BUCKETS if rows <= bucket), None)
    tiling = _Tiling(row_warps_of(out), bucket or MOST_ROWS)
    shared_bytes = tiling.shared_bytes(_shared_limit(device))
    if bucket is None or not shared_bytes:
        raise KernelError(f"linear on CUDA: {rows} rows; this GPU's kernel takes 1 to {most_rows(device)}")
    tiles = -(-out // tiling.tile)
    units = tiles * -(-width // tiling.columns)
    most_blocks = processors(device)
    blocks = max(1, min(most_blocks, units // _FEWEST_UNITS))
    if tiles > _MOST_TILES:
        raise KernelError(f"linear on CUDA: {out} outputs; the kernel takes up to {_MOST_TILES * tiling.tile}")
    partials, counters = _workspace(device, most_blocks)
    params = SkinnyParams(
        x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(), partials.data_ptr(),
        counters.data_ptr(), x.stride(0), weight.stride(0), y.stride(0), rows, width, out, parts,
        int(y.dtype == torch.float32), 0,
    )  # fmt: skip
    kernel = source(x.dtype, tiling.row_warps)
    run_kernel(kernel, f"skinny_{tiling.bucket}_kernel", blocks, _THREADS, params, shared_bytes)


def _shared_limit(device: torch.device) -> int:
    return _SHARED_LIMITS.get(capability(device), _OTHER_SHARED_LIMIT)


def capability(device: torch.device) -> tuple[int, int]:
    """Of a GPU."""
    return torch.cuda.get_device_capability(device)


@cache
def _workspace(device: torch.device, most_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the blocks of a launch hand each other; launches on one device use the same, so they are one stream's."""
    partials = torch.empty(most_blocks * 2 * 4 * _WARP_ROWS * MOST_ROWS, dtype=torch.float32, device=device)
    return partials, torch.zeros(_MOST_TILES, dtype=torch.int32, device=device)
