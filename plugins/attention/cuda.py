"""Paged attention on NVIDIA GPUs, bfloat16 and float16: sizes of grids and workspace, checks, and the launches.

Everything the host decides follows from shapes, so that a captured graph serves every batch of its layout; what
depends on lengths is planned on the device, once per step.
"""

import ctypes
import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.launch import launch
from plugins.cuda.library import get_kernel
from plugins.cuda.source import KernelSource

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

HEAD_DIMS = (64, 96, 128, 256)
ELEMENTS = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
PLAN_SOURCE = KernelSource("attention_plan", "attention/attention_plan.cu")

# Where contexts are cut, in keys. A row's result depends on it, so it is the same for every batch.
NEAR_SPLIT, NEAR_KEYS, FAR_SPLIT = 256, 2048, 512  # short at first: one request alone is to keep the GPU busy
SHORT_ROWS = 64  # tokens; SHORT_ROWS of attention_plan.cuh
MIN_BLOCK_SIZE = 16  # keys of a chunk
WORKSPACE_BYTES = 128 << 20  # of splits' results; where they would not fit, the step's splits are longer
MAX_BLOCKS = 2048  # of a grid whose work the host cannot count; they go through it in strides
_PLAN_HEADER, _PLAN_ITEM = 4, 48  # int32 each; attention_plan.cuh
_PLAN_THREADS = 128
_LARGE_SHARED = ((9, 0), (10, 0))  # LARGE of attention.cu
_MOST_KEYS = 2**31 - 1


class Variant(NamedTuple):
    """An entry point of attention.cu and its AttentionConfig."""

    entry: str
    key_warps: int
    row_warps: int
    warp_rows: int
    chunk: int
    stages: int

    @property
    def rows(self) -> int:
        return self.row_warps * self.warp_rows

    @property
    def threads(self) -> int:
        return 32 * self.key_warps * self.row_warps

    def shared_bytes(self, head_dim: int) -> int:
        row_bytes = 2 * head_dim + 16
        ring = self.key_warps * self.stages * 2 * self.chunk * row_bytes
        columns = head_dim if self.rows <= 16 else 32
        merge = self.key_warps * self.rows * (columns + (4 if self.warp_rows == 8 else 8) + 2) * 4
        if self.key_warps == 1:
            return self.rows * row_bytes + ring
        return self.rows * row_bytes + max(ring, merge) + 16


def has_large_shared(device: torch.device) -> bool:
    """Whether the images for this device are of attention.cu's large configurations."""
    return torch.cuda.get_device_capability(device) in _LARGE_SHARED


def variants(head_dim: int, device: torch.device) -> list[Variant]:
    """The configurations of attention.cu, the narrowest first; the last is for requests of more than SHORT_ROWS."""
    large, wide = has_large_shared(device), head_dim > 128
    key_warps = 2 if wide else 4
    stages = 2 if wide or (head_dim > 96 and not large) else 3
    warp_rows = 16 if wide else 32
    chunk = 64 if large or head_dim <= 96 else 16 if wide else 32
    return [
        Variant("attention_decode_kernel", key_warps, 1, 8, 16, stages),
        Variant("attention_group_kernel", key_warps, 1, 16, 16, stages),
        Variant("attention_tree_kernel", key_warps, 2, warp_rows, 16, 2),
        Variant("attention_chunk_kernel", 1, 8 if wide else 4, warp_rows, chunk, 2),
    ]


class _Params(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k_cache", "v_cache", "out", "block_tables", "ancestors", "items")),
        *((name, ctypes.c_void_p) for name in ("num_items", "partial", "counters")),
        *((name, ctypes.c_int64) for name in ("q_token_stride", "q_head_stride", "out_token_stride")),
        *((name, ctypes.c_int64) for name in ("out_head_stride", "num_slots", "group_inverse")),
        *((name, ctypes.c_int32) for name in ("group", "num_heads", "num_kv_heads", "block_shift")),
        *((name, ctypes.c_int32) for name in ("max_blocks", "max_works", "num_nodes", "window", "unused")),
        ("log2_scale", ctypes.c_float),
    ]


class _PlanParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query_starts", "context_lens", "block_tables", "ancestors")),
        *((name, ctypes.c_void_p) for name in ("plan", "counters")),
        *((name, ctypes.c_int32) for name in ("num_requests", "num_nodes", "num_kv_heads", "group", "block_shift")),
        *((name, ctypes.c_int32) for name in ("max_blocks", "window", "short_tile", "long_tile", "near_split")),
        *((name, ctypes.c_int32) for name in ("far_split", "near_keys", "num_slots", "max_short")),
    ]


class _Settings(NamedTuple):
    """The host's part of a plan, as it travels in the plan's last tensor. What cannot be counted is bounded."""

    num_tokens: int
    num_heads: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    window: int
    short_variant: int  # of `variants`, for the short requests
    short_tiles: int
    short_items: int  # tiles x splits
    long_tiles: int
    num_slots: int  # (token, split) pairs of the workspace


def source(dtype: torch.dtype, head_dim: int) -> KernelSource:
    """What is compiled for a cache of that dtype and head_dim."""
    defines = (("ELEMENT", ELEMENTS[dtype]), ("HEAD_DIM", str(head_dim)))
    return KernelSource("attention", "attention/attention.cu", defines)


def plan_attention_cuda(
    shape: "AttentionShape",
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    ancestors: torch.Tensor | None,
    num_tokens: int,
    max_query_len: int | None = None,
) -> list[torch.Tensor]:
    """Return plan, splits' results, counters, block tables, ancestors (empty: all chains), and settings on the host.

    Raises:
        KernelError: a head_dim, block size or tensor that the kernels do not take.
    """
    _check_shape(shape)
    num_requests, max_blocks = block_tables.shape
    for tensor, size in ((query_starts, num_requests + 1), (context_lens, num_requests), (block_tables, None)):
        _check_indices(tensor, size, query_starts.device)
    num_nodes = 0 if ancestors is None else ancestors.shape[1]
    if ancestors is not None:
        _check_indices(ancestors, num_requests, query_starts.device)
    device = query_starts.device
    settings = _settings(shape, device, num_requests, max_blocks, num_nodes, num_tokens, max_query_len)
    kinds, group = variants(shape.head_dim, device), shape.num_heads // shape.num_kv_heads
    num_counters = settings.short_tiles * shape.num_kv_heads
    num_items = settings.short_items + settings.long_tiles
    plan = torch.empty(_PLAN_HEADER + num_items * _PLAN_ITEM, dtype=torch.int32, device=device)
    partial = torch.empty(settings.num_slots * shape.num_heads * (shape.head_dim + 2), device=device)
    counters = torch.empty(num_counters, dtype=torch.int32, device=device)
    if num_requests == 0 or num_tokens == 0:
        return [plan, partial, counters, block_tables, torch.empty(0), torch.tensor(settings)]
    params = _PlanParams(
        query_starts.data_ptr(), context_lens.data_ptr(), block_tables.data_ptr(),
        ancestors.data_ptr() if ancestors is not None else None, plan.data_ptr(), counters.data_ptr(),
        num_requests, num_nodes, shape.num_kv_heads, group, shape.block_size.bit_length() - 1, max_blocks,
        settings.window, kinds[settings.short_variant].rows, kinds[-1].rows,
        NEAR_SPLIT, FAR_SPLIT, NEAR_KEYS, settings.num_slots, settings.short_items,
    )  # fmt: skip
    kernel = get_kernel(PLAN_SOURCE, "attention_plan_kernel", _PlanParams)
    launch(kernel, num_requests, _PLAN_THREADS, 0, params, current_stream(), dependent=True)
    kept = block_tables.new_empty(0, 0) if ancestors is None else ancestors
    return [plan, partial, counters, block_tables, kept, torch.tensor(settings)]


def attention_cuda(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    out: torch.Tensor,
) -> None:
    records, partial, counters, block_tables, ancestors, host = plan
    settings = _Settings(*host.tolist())
    _check_tensors(settings, q, k_cache, v_cache, scale, out)
    if settings.num_tokens == 0 or len(block_tables) == 0:
        return
    group = settings.num_heads // settings.num_kv_heads
    params = _Params(
        q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out.data_ptr(), block_tables.data_ptr(),
        ancestors.data_ptr() if ancestors.numel() else None, records.data_ptr() + 4 * _PLAN_HEADER,
        records.data_ptr(), partial.data_ptr(), counters.data_ptr(), q.stride(0), q.stride(1),
        out.stride(0), out.stride(1), settings.num_slots, -(-(2**32) // group), group, settings.num_heads, settings.num_kv_heads, settings.block_size.bit_length() - 1,
        block_tables.shape[1], settings.short_items * settings.num_kv_heads, ancestors.shape[1], settings.window, 0,
        scale * math.log2(math.e),
    )  # fmt: skip
    kinds = variants(settings.head_dim, q.device)
    _launch(kinds[settings.short_variant], settings, settings.short_items, q.dtype, params)
    if settings.long_tiles:
        params.items += 4 * _PLAN_ITEM * settings.short_items
        params.num_items += 4
        params.max_works = settings.long_tiles * settings.num_kv_heads
        _launch(kinds[-1], settings, settings.long_tiles, q.dtype, params)


def _launch(kind: Variant, settings: _Settings, items: int, dtype: torch.dtype, params: _Params) -> None:
    kernel = get_kernel(source(dtype, settings.head_dim), kind.entry, _Params)
    grid = min(items * settings.num_kv_heads, MAX_BLOCKS)
    shared_bytes = kind.shared_bytes(settings.head_dim)
    launch(kernel, grid, kind.threads, shared_bytes, params, current_stream(), dependent=True)


def current_stream() -> int:
    """The handle of the stream that torch launches on."""
    return int(torch.cuda.current_stream().cuda_stream)


def _settings(
    shape: "AttentionShape",
    device: torch.device,
    num_requests: int,
    max_blocks: int,
    num_nodes: int,
    num_tokens: int,
    max_query_len: int | None,
) -> _Settings:
    kinds, group = variants(shape.head_dim, device), shape.num_heads // shape.num_kv_heads
    longest = min(num_tokens, max_query_len or num_tokens)
    # Beside long prompts the other rows decode; a batch without trees that is wide may be such a batch.
    mean_rows = group if num_nodes == 0 and longest > SHORT_ROWS else -(-num_tokens // max(num_requests, 1)) * group
    short_variant = next((i for i, kind in enumerate(kinds[:2]) if mean_rows <= kind.rows), 2)
    short_tokens = min(num_tokens, SHORT_ROWS * num_requests)
    short_tiles = short_tokens * group // kinds[short_variant].rows + min(num_requests, short_tokens)
    splits = -(-min(max_blocks * shape.block_size, NEAR_KEYS) // NEAR_SPLIT)
    splits += -(-max(max_blocks * shape.block_size - NEAR_KEYS, 0) // FAR_SPLIT)
    if shape.sliding_window is not None:
        splits = min(splits, (shape.sliding_window + SHORT_ROWS) // NEAR_SPLIT + 2)
    slot_bytes = shape.num_heads * (shape.head_dim + 2) * 4
    num_slots = min(short_tokens * splits, WORKSPACE_BYTES // slot_bytes) if splits > 1 else 0
    long_tiles = 0
    if longest > SHORT_ROWS:
        long_tiles = num_tokens * group // kinds[-1].rows + min(num_requests, num_tokens // SHORT_ROWS)
    window = _MOST_KEYS if shape.sliding_window is None else shape.sliding_window
    return _Settings(
        num_tokens, shape.num_heads, shape.num_kv_heads, shape.block_size, shape.head_dim, window,
        short_variant, short_tiles, short_tiles * splits, long_tiles, num_slots,
    )  # fmt: skip


def _check_shape(shape: "AttentionShape") -> None:
    if shape.head_dim not in HEAD_DIMS:
        raise KernelError(f"attention on CUDA: head_dim is {shape.head_dim}; there are kernels for {HEAD_DIMS}")
    if shape.block_size < MIN_BLOCK_SIZE or shape.block_size & (shape.block_size - 1):
        raise KernelError(
            f"attention on CUDA: block_size is {shape.block_size}; it must be a power of two, {MIN_BLOCK_SIZE} or more"
        )
    if shape.num_heads % shape.num_kv_heads:
        raise KernelError(f"attention: {shape.num_heads} heads do not share {shape.num_kv_heads} K/V heads evenly")


def _check_indices(tensor: torch.Tensor, size: int | None, device: torch.device) -> None:
    if tensor.dtype != torch.int64 or tensor.device != device or not tensor.is_contiguous():
        raise KernelError(
            f"attention on CUDA: an index tensor is {tensor.dtype} on {tensor.device} with strides {tensor.stride()}; "
            f"it must be int64, contiguous and on {device}"
        )
    if size is not None and len(tensor) != size:
        raise KernelError(f"attention: an index tensor has {len(tensor)} rows, the batch needs {size}")


def _check_tensors(
    settings: _Settings, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scale: float, out: torch.Tensor
) -> None:
    queries = (settings.num_tokens, settings.num_heads, settings.head_dim)
    blocks = (settings.num_kv_heads, settings.block_size, settings.head_dim)
    if q.shape != queries or out.shape != queries or k_cache.shape[1:] != blocks or v_cache.shape != k_cache.shape:
        raise KernelError(
            f"attention: q {tuple(q.shape)}, out {tuple(out.shape)}, caches {tuple(k_cache.shape)} and "
            f"{tuple(v_cache.shape)} do not fit the plan's {queries} and (num_blocks, {', '.join(map(str, blocks))})"
        )
    if len({q.dtype, k_cache.dtype, v_cache.dtype, out.dtype}) > 1 or q.dtype not in ELEMENTS:
        raise KernelError(
            f"attention on CUDA: q is {q.dtype}, the caches {k_cache.dtype} and {v_cache.dtype}, out {out.dtype}; "
            "all must be bfloat16, or all float16"
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise KernelError("attention on CUDA: the caches must be contiguous")
    for tensor in (q, k_cache, v_cache, out):
        if tensor.stride(-1) != 1 or tensor.stride(0) % 8 or tensor.stride(1) % 8 or tensor.data_ptr() % 16:
            raise KernelError(
                f"attention on CUDA: a tensor has strides {tensor.stride()}; "
                "rows must be contiguous and aligned to 16 bytes"
            )
    if scale <= 0:
        raise KernelError(f"attention: scale is {scale}; it must be positive")
