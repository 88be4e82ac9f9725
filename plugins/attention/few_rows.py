"""Attention of a step of few rows on GPUs with clusters, bfloat16 and float16: one launch a layer, and no plan."""

import ctypes
import math
from typing import TYPE_CHECKING

import torch

from plugins.attention.cuda_checks import ELEMENTS, check_indices, check_shape
from plugins.cuda.run import run_kernel
from plugins.cuda.source import KernelSource

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

FEW_HEAD_DIMS = (64, 96, 128)
_WARPS, _TILE_ROWS, _VISIT_KEYS, _PARTS, _STAGES = 8, 16, 128, 4, 2  # attention_few.cuh
_MOST_KEYS = 2**31 - 1


class _Params(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k_cache", "v_cache", "out")),
        *((name, ctypes.c_void_p) for name in ("query_starts", "context_lens", "block_tables", "ancestors")),
        *((name, ctypes.c_int64) for name in ("q_token_stride", "q_head_stride", "out_token_stride")),
        *((name, ctypes.c_int64) for name in ("out_head_stride", "group_inverse")),
        *((name, ctypes.c_int32) for name in ("group", "num_kv_heads", "num_requests", "block_shift")),
        *((name, ctypes.c_int32) for name in ("max_blocks", "num_nodes", "window")),
        ("log2_scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("trace", "unused")),
    )


def few_source(dtype: torch.dtype, head_dim: int) -> KernelSource:
    """What is compiled for a cache of that dtype and head_dim, which is one of FEW_HEAD_DIMS."""
    defines = (("ELEMENT", ELEMENTS[dtype]), ("HEAD_DIM", str(head_dim)))
    return KernelSource("attention_few", "attention/attention_few.cu", defines)


def shared_bytes(head_dim: int, cluster: int) -> int:
    """Shared memory of a block: FewShared of attention_few.cuh."""
    row_bytes = 2 * head_dim + 16
    ring = _STAGES * 2 * _VISIT_KEYS * row_bytes
    part = head_dim // 8 * 512 + 8 * _TILE_ROWS
    rows = _TILE_ROWS * (row_bytes + 2 * _VISIT_KEYS + 16 + 4 * _WARPS)
    return ring + rows + 16 + (_PARTS - _PARTS // cluster) * part


class FewRowsAttention:
    """One step's attention over the cache: see plan_attention for what the tensors hold.

    Raises:
        KernelError: a head_dim, block size or tensor that the kernel does not take.
    """

    def __init__(
        self,
        shape: "AttentionShape",
        query_starts: torch.Tensor,
        context_lens: torch.Tensor,
        block_tables: torch.Tensor,
        ancestors: torch.Tensor | None,
        num_tokens: int,
    ) -> None:
        check_shape(shape)
        num_requests, max_blocks = block_tables.shape
        sizes = ((query_starts, num_requests + 1), (context_lens, num_requests), (block_tables, None))
        for tensor, size in (*sizes, *(() if ancestors is None else ((ancestors, num_requests),))):
            check_indices(tensor, size, query_starts.device)
        group = shape.num_heads // shape.num_kv_heads
        self._shape, self._keep = shape, (query_starts, context_lens, block_tables, ancestors)
        self._tiles, self._cluster = _tiles(shape, num_requests, num_tokens)
        self._params = _Params(
            query_starts=query_starts.data_ptr(), context_lens=context_lens.data_ptr(),
            block_tables=block_tables.data_ptr(), ancestors=None if ancestors is None else ancestors.data_ptr(),
            group_inverse=-(-(2**32) // group), group=group, num_kv_heads=shape.num_kv_heads,
            num_requests=num_requests, block_shift=shape.block_size.bit_length() - 1, max_blocks=max_blocks,
            num_nodes=0 if ancestors is None else ancestors.shape[1],
            window=_MOST_KEYS if shape.sliding_window is None else shape.sliding_window,
        )  # fmt: skip

    def __call__(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """As `attention`; to be followed by a launch that waits for it."""
        params, shape = self._params, self._shape
        params.q, params.out = q.data_ptr(), out.data_ptr()
        params.k_cache, params.v_cache = k_cache.data_ptr(), v_cache.data_ptr()
        params.q_token_stride, params.q_head_stride = q.stride(0), q.stride(1)
        params.out_token_stride, params.out_head_stride = out.stride(0), out.stride(1)
        params.log2_scale = scale * math.log2(math.e)
        run_kernel(
            few_source(q.dtype, shape.head_dim), "attention_few_kernel",
            (self._tiles * self._cluster, shape.num_kv_heads), 32 * _WARPS, params,
            shared_bytes(shape.head_dim, self._cluster), cluster=self._cluster,
        )  # fmt: skip


def _tiles(shape: "AttentionShape", num_requests: int, num_tokens: int) -> tuple[int, int]:
    """Tiles of a K/V head at most, and blocks that share one, which does not change a row's result."""
    tiles = num_tokens * (shape.num_heads // shape.num_kv_heads) // _TILE_ROWS + min(num_requests, num_tokens)
    blocks = tiles * shape.num_kv_heads
    most_of_four, most_of_two = (44, 72) if shape.head_dim == 64 else (33, 66)  # measured on an H100: layer_step.md
    return tiles, 4 if blocks <= most_of_four else 2 if blocks <= most_of_two else 1
