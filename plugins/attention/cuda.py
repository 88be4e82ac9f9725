"""Paged attention on NVIDIA GPUs, bfloat16 and float16: the launches of the plan and of the kernels.

Everything the host decides follows from shapes (cuda_layout.py), so that a captured graph serves every batch of its
layout; what depends on lengths is planned on the device, once per step.
"""

import ctypes
import math
from functools import cache
from typing import TYPE_CHECKING

import torch

from plugins.attention.cuda_checks import ELEMENTS, HEAD_DIMS, check_indices, check_shape, check_tensors
from plugins.attention.cuda_layout import (
    PREFILL_HEAD_DIMS,
    PREFILL_KEYS,
    SPLITS,
    Kinds,
    Layout,
    PrefillVariant,
    Variant,
    has_wgmma,
    plan_layout,
    prefill_variant,
    variants,
)
from plugins.cuda.launch import launch, max_cooperative_blocks
from plugins.cuda.library import Kernel, get_kernel, has_image
from plugins.cuda.source import KernelSource
from plugins.cuda.tensor_map import MAP_BYTES, encode_rows

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

PLAN_SOURCE = KernelSource("attention_plan", "attention/attention_plan.cu")
PREFILL_ARCHS = ("sm_90a",)
__all__ = [
    "ELEMENTS", "HEAD_DIMS", "PLAN_SOURCE", "PREFILL_ARCHS", "PREFILL_HEAD_DIMS", "attention_cuda",
    "plan_attention_cuda", "prefill_source", "source",
]  # fmt: skip

_PLAN_HEADER, _PLAN_ITEM = 4, 48  # int32 each; attention_plan.cuh
_PLAN_THREADS = 128
_PLAN_BLOCKS = 64  # that a step is planned by, where it has fewer requests: a warp takes a microsecond for an item


class _Params(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k_cache", "v_cache", "out", "block_tables", "ancestors", "items")),
        *((name, ctypes.c_void_p) for name in ("header", "partial", "counters")),
        *((name, ctypes.c_int64) for name in ("q_token_stride", "q_head_stride", "out_token_stride")),
        *((name, ctypes.c_int64) for name in ("out_head_stride", "num_slots", "group_inverse")),
        *((name, ctypes.c_int32) for name in ("group", "num_heads", "num_kv_heads", "block_shift")),
        *((name, ctypes.c_int32) for name in ("max_blocks", "max_works", "num_nodes", "window", "tile_counters")),
        ("log2_scale", ctypes.c_float),
    ]


class _PrefillParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint8 * MAP_BYTES) for name in ("keys", "values")),
        ("attention", _Params),
        ("unused", ctypes.c_uint32 * 6),
    ]


class _PlanParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query_starts", "context_lens", "block_tables", "ancestors")),
        *((name, ctypes.c_void_p) for name in ("plan", "counters")),
        *((name, ctypes.c_int32) for name in ("num_requests", "num_nodes", "num_kv_heads", "group", "block_shift")),
        *((name, ctypes.c_int32) for name in ("max_blocks", "window", "short_tile", "long_tile", "near_split")),
        *((name, ctypes.c_int32) for name in ("middle_split", "far_split", "near_keys", "middle_keys")),
        *((name, ctypes.c_int32) for name in ("num_slots", "max_short", "tile_counters", "unused")),
    ]


def source(dtype: torch.dtype, head_dim: int) -> KernelSource:
    """What is compiled for a cache of that dtype and head_dim."""
    defines = (("ELEMENT", ELEMENTS[dtype]), ("HEAD_DIM", str(head_dim)))
    return KernelSource("attention", "attention/attention.cu", defines)


def prefill_source(dtype: torch.dtype, head_dim: int) -> KernelSource:
    """The same of long requests, on PREFILL_ARCHS and for one of PREFILL_HEAD_DIMS."""
    return KernelSource("attention_prefill", "attention/attention_prefill.cu", source(dtype, head_dim).defines)


def kinds_for(head_dim: int, dtype: torch.dtype, device: torch.device) -> Kinds:
    """The kernels of a step, the narrowest first; the last is for long requests."""
    kinds = variants(head_dim, device)
    if head_dim in PREFILL_HEAD_DIMS and has_wgmma(device) and has_image(prefill_source(dtype, head_dim)):
        kinds[-1] = prefill_variant(head_dim)
    return kinds


def plan_attention_cuda(
    shape: "AttentionShape",
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    dtype: torch.dtype,
    ancestors: torch.Tensor | None,
    num_tokens: int,
    max_query_len: int | None = None,
) -> list[torch.Tensor]:
    """Return plan, splits' results, counters, block tables, ancestors (empty: all chains), and layout on the host.

    Raises:
        KernelError: a head_dim, block size or tensor that the kernels do not take.
    """
    check_shape(shape)
    num_requests, max_blocks = block_tables.shape
    for tensor, size in ((query_starts, num_requests + 1), (context_lens, num_requests), (block_tables, None)):
        check_indices(tensor, size, query_starts.device)
    num_nodes = 0 if ancestors is None else ancestors.shape[1]
    if ancestors is not None:
        check_indices(ancestors, num_requests, query_starts.device)
    device = query_starts.device
    kinds, group = kinds_for(shape.head_dim, dtype, device), shape.num_heads // shape.num_kv_heads
    layout = plan_layout(shape, kinds, num_requests, max_blocks, num_nodes, num_tokens, max_query_len)
    num_counters = layout.short_tiles * shape.num_kv_heads * layout.tile_counters
    num_items = layout.short_items + layout.long_tiles
    plan = torch.empty(_PLAN_HEADER + num_items * _PLAN_ITEM, dtype=torch.int32, device=device)
    partial = torch.empty(layout.num_slots * shape.num_heads * (shape.head_dim + 4), device=device)
    counters = torch.empty(num_counters, dtype=torch.int32, device=device)
    if num_requests == 0 or num_tokens == 0:
        return [plan, partial, counters, block_tables, torch.empty(0), torch.tensor(layout)]
    params = _PlanParams(
        query_starts.data_ptr(), context_lens.data_ptr(), block_tables.data_ptr(),
        ancestors.data_ptr() if ancestors is not None else None, plan.data_ptr(), counters.data_ptr(),
        num_requests, num_nodes, shape.num_kv_heads, group, shape.block_size.bit_length() - 1, max_blocks,
        layout.window, kinds[layout.short_variant].rows, kinds[-1].rows,
        *(keys for keys, _ in SPLITS), *(end for _, end in SPLITS[:-1]), layout.num_slots, layout.short_items,
        layout.tile_counters, 0,
    )  # fmt: skip
    kernel = get_kernel(PLAN_SOURCE, "attention_plan_kernel", _PlanParams)
    parts = max(min(_PLAN_BLOCKS // num_requests, num_items // num_requests // (_PLAN_THREADS // 32)), 1)
    launch(kernel, (num_requests, parts), _PLAN_THREADS, 0, params, current_stream(), dependent=True)
    kept = block_tables.new_empty(0, 0) if ancestors is None else ancestors
    return [plan, partial, counters, block_tables, kept, torch.tensor(layout)]


def attention_cuda(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    out: torch.Tensor,
) -> None:
    records, partial, counters, block_tables, ancestors, host = plan
    layout = Layout(*host.tolist())
    check_tensors(layout, q, k_cache, v_cache, scale, out)
    if layout.num_tokens == 0 or len(block_tables) == 0:
        return
    group = layout.num_heads // layout.num_kv_heads
    params = _Params(
        q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out.data_ptr(), block_tables.data_ptr(),
        ancestors.data_ptr() if ancestors.numel() else None, records.data_ptr() + 4 * _PLAN_HEADER,
        records.data_ptr(), partial.data_ptr(), counters.data_ptr(), q.stride(0), q.stride(1),
        out.stride(0), out.stride(1), layout.num_slots, -(-(2**32) // group), group,
        layout.num_heads, layout.num_kv_heads, layout.block_size.bit_length() - 1,
        block_tables.shape[1], layout.short_items * layout.num_kv_heads, ancestors.shape[1], layout.window,
        layout.tile_counters, scale * math.log2(math.e),
    )  # fmt: skip
    kinds = variants(layout.head_dim, q.device)
    _launch(source(q.dtype, layout.head_dim), kinds[layout.short_variant], layout, layout.short_items, params)
    if not layout.long_tiles:
        return
    params.items += 4 * _PLAN_ITEM * layout.short_items
    params.header += 4
    params.max_works = layout.long_tiles * layout.num_kv_heads
    if layout.prefill:
        maps = (_describe(cache, min(layout.block_size, PREFILL_KEYS)) for cache in (k_cache, v_cache))
        with_maps = _PrefillParams(*maps, params)
        kind = prefill_variant(layout.head_dim)
        _launch(prefill_source(q.dtype, layout.head_dim), kind, layout, layout.long_tiles, with_maps)
    else:
        _launch(source(q.dtype, layout.head_dim), kinds[-1], layout, layout.long_tiles, params)


def _describe(cache: torch.Tensor, box_rows: int) -> ctypes.Array[ctypes.c_uint8]:
    """The cache as rows of keys, for the tensor copy engine."""
    rows = encode_rows(cache.data_ptr(), cache.numel() // cache.shape[-1], cache.shape[-1], box_rows)
    return (ctypes.c_uint8 * MAP_BYTES).from_buffer_copy(rows)


def _launch(
    code: KernelSource, kind: Variant | PrefillVariant, layout: Layout, items: int, params: _Params | _PrefillParams
) -> None:
    kernel = get_kernel(code, kind.entry, type(params))
    shared_bytes = kind.shared_bytes(layout.head_dim)
    grid = min(items * layout.num_kv_heads, resident_blocks(kernel, kind.threads, shared_bytes))
    launch(kernel, grid, kind.threads, shared_bytes, params, current_stream(), dependent=True)


@cache
def resident_blocks(kernel: Kernel, threads: int, shared_bytes: int) -> int:
    """How many blocks the device holds at once."""
    return max_cooperative_blocks(kernel, threads, shared_bytes)


def current_stream() -> int:
    """The handle of the stream that torch launches on."""
    return int(torch.cuda.current_stream().cuda_stream)
