"""How the layers of a small model are cut: by sizes that its kernels are compiled for, see small_linear.cuh."""

from typing import NamedTuple

import torch

from plugins.cuda.run import ELEMENTS, run_kernel
from plugins.cuda.source import KernelSource
from plugins.layer_step.layout import SMALL_WEIGHTS, STEP
from plugins.layer_step.params import LayerLinearParams
from plugins.layer_step.weights import LayerSpec

_MOST_WARPS = 12
_MOST_STEPS = 4  # of a warp
_SUM_BYTES = 2 * 8 * 8 * 4  # of a warp, for 16 outputs of 8 rows


class SmallCut(NamedTuple):
    """What a block has."""

    tiles: int  # of 16 outputs
    rows: int


def is_small(spec: LayerSpec) -> bool:
    """Whether a model's layers have kernels of their own."""
    layers = {name: sizes for name, sizes in spec.linears.items() if name != "head"}
    fits = all(
        outputs * columns < SMALL_WEIGHTS and columns % STEP == 0 and outputs % 16 == 0
        and columns // STEP // small_warps(columns) <= _MOST_STEPS
        for outputs, columns in layers.values()
    )  # fmt: skip
    return fits and not spec.qk_norm and spec.head_dim % 16 == 0 and spec.intermediate_size % 8 == 0


def small_warps(columns: int) -> int:
    """Of a block: as many as have equally many steps."""
    return next(warps for warps in range(_MOST_WARPS, 0, -1) if columns // STEP % warps == 0)


def small_cut(layer: str, rows: int) -> SmallCut:
    """The cut of a layer; a row's result does not depend on it."""
    if layer == "gate_up":
        return SmallCut(2, 8) if rows <= 8 else SmallCut(3, 8 if rows <= 16 else 16)
    return SmallCut(1, 8 if rows <= (32 if layer == "down" else 16) else 16)


def small_source(spec: LayerSpec, element: torch.dtype) -> KernelSource:
    """The layers' kernels for that model and dtype."""
    sizes = {
        "HIDDEN": spec.hidden_size, "INTERMEDIATE": spec.intermediate_size, "NUM_HEADS": spec.num_heads,
        "NUM_KV_HEADS": spec.num_kv_heads, "HEAD_DIM": spec.head_dim,
    }  # fmt: skip
    defines = (("ELEMENT", ELEMENTS[element]), *((name, str(size)) for name, size in sizes.items()))
    return KernelSource("small_linear", "layer_step/small_linear.cu", defines)


def run_small(layer: str, params: LayerLinearParams, spec: LayerSpec, dtype: torch.dtype) -> None:
    """Launch one layer: qkv, dense, gate_up or down."""
    cut = small_cut(layer, params.rows)
    warps = small_warps(params.columns)
    factor_warps = 1 if layer in ("qkv", "gate_up") or dtype == torch.float16 else 0
    groups = -(-params.rows // cut.rows)
    tiles = params.outputs // 16
    num_bytes = warps * cut.tiles * (cut.rows // 8) * _SUM_BYTES + 4 * cut.rows
    entry = f"layer_small_{layer}_{cut.tiles}_{cut.rows}_kernel"
    run_kernel(
        small_source(spec, dtype),
        entry,
        (-(-tiles // cut.tiles), groups),
        32 * (warps + factor_warps),
        params,
        num_bytes,
    )
