"""A decoder's pass over up to 64 rows: five launches a layer, on the current stream."""

from collections.abc import Callable
from functools import partial

import torch

from plugins.attention import AttentionShape, attention, plan_attention
from plugins.attention.cuda_layout import has_wgmma
from plugins.attention.few_rows import FEW_HEAD_DIMS, FewRowsAttention
from plugins.cuda.library import has_image
from plugins.cuda.run import ELEMENTS, processors, run_kernel
from plugins.cuda.source import KernelSource
from plugins.layer_step.layout import (
    STAGES,
    THREADS,
    Tiling,
    block_rows,
    clusters,
    head_tiling,
    is_wide,
    shared_bytes,
    tiling,
)
from plugins.layer_step.params import MODES, LayerLinearParams, RowsParams
from plugins.layer_step.small import is_small, run_small
from plugins.layer_step.weights import LayerTensors, LayerWeights
from plugins.layer_step.wide import Wide, run_wide, wide_cut, wide_source
from plugins.rope_kv_write import rope_kv_write

_ROW_THREADS = 256
_BLOCK_SUM_BYTES = 32


def linear_source(element: torch.dtype) -> KernelSource:
    """The linear layers' kernels for that dtype."""
    defines = (("ELEMENT", ELEMENTS[element]), ("RING_STAGES", str(STAGES)))
    return KernelSource("layer_linear", "layer_step/layer_linear.cu", defines)


def rows_source(element: torch.dtype) -> KernelSource:
    """The kernels of a step's ends for that dtype."""
    return KernelSource("layer_rows", "layer_step/rows.cu", (("ELEMENT", ELEMENTS[element]),))


class LayerStep:
    """Steps of one model over one cache; see the package. Keeps nothing between them."""

    def __init__(self, weights: LayerWeights, cache: torch.Tensor) -> None:
        self._weights = weights
        self._cache = cache
        self._takes_wide = takes_wide(cache.device, cache.dtype)

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cache_positions: torch.Tensor,
        query_starts: torch.Tensor,
        context_lens: torch.Tensor,
        block_tables: torch.Tensor,
        ancestors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, cache = self._weights, self._cache
        spec, rows, dtype = weights.spec, len(token_ids), cache.dtype
        shape = AttentionShape(spec.num_heads, spec.num_kv_heads, cache.shape[3], spec.sliding_window, spec.head_dim)
        attend = _attention(shape, query_starts, context_lens, block_tables, dtype, ancestors, rows)
        stream = _Stream(self, token_ids, positions, cache_positions, query_starts, block_tables)
        context = cache.new_empty(rows, spec.num_heads, spec.head_dim)
        query = torch.empty_like(context)
        activated = cache.new_empty(rows, spec.intermediate_size)
        for index, layer in enumerate(weights.layers):
            k_cache, v_cache = cache[2 * index], cache[2 * index + 1]
            stream.queries(layer, k_cache, v_cache, query)
            attend(query, k_cache, v_cache, scale=spec.head_dim**-0.5, out=context)
            stream.add("dense", context, layer.dense, layer.post_norm)
            stream.gated(layer.gate_up, activated)
            is_last = index + 1 == len(weights.layers)
            next_norm = layer.input_norm if is_last else weights.layers[index + 1].input_norm
            stream.add("down", activated, layer.down, next_norm)
        return stream.logits()


def _attention(
    shape: AttentionShape,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    dtype: torch.dtype,
    ancestors: torch.Tensor | None,
    rows: int,
) -> Callable[..., object]:
    """`attention` of this step; the kernel for few rows where there is one."""
    if shape.head_dim in FEW_HEAD_DIMS:
        return FewRowsAttention(shape, query_starts, context_lens, block_tables, ancestors, rows)
    plan = plan_attention(shape, query_starts, context_lens, block_tables, dtype, ancestors, rows)
    return partial(attention, plan=plan)


class _Stream:
    """The residual stream of a step's rows, and the layers that read and change it."""

    def __init__(
        self,
        step: LayerStep,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cache_positions: torch.Tensor,
        query_starts: torch.Tensor,
        block_tables: torch.Tensor,
    ) -> None:
        weights, cache = step._weights, step._cache
        self._weights, self._rows, self._takes_wide = weights, len(token_ids), step._takes_wide
        self._is_small = is_small(weights.spec)
        self._block_size = cache.shape[3]
        self._hidden = torch.empty(self._rows, weights.spec.hidden_size, device=cache.device)
        self._scaled = cache.new_empty(self._hidden.shape)
        self._squares = self._hidden.new_empty(self._rows, 1)
        # Float16 may not hold the stream, so its rows are scaled: see SCALES_ROWS.
        self._scales = self._hidden.new_empty(self._rows) if cache.dtype == torch.float16 else None
        self._kv_rows = torch.empty_like(positions)
        params = self._rows_params(weights.layers[0].input_norm)
        params.token_ids, params.cache_positions = token_ids.data_ptr(), cache_positions.data_ptr()
        params.query_starts, params.block_tables = query_starts.data_ptr(), block_tables.data_ptr()
        params.embedding = weights.embedding.data_ptr()
        params.num_requests, params.max_blocks = block_tables.shape
        self._cos = cache.new_empty(self._rows, weights.spec.head_dim)
        self._sin = torch.empty_like(self._cos)
        params.positions, params.head_dim = positions.data_ptr(), weights.spec.head_dim
        params.cos, params.sin = weights.cos.data_ptr(), weights.sin.data_ptr()
        params.row_cos, params.row_sin = self._cos.data_ptr(), self._sin.data_ptr()
        self._run_rows("rows_begin_kernel", params)
        self._qkv = None
        if (
            weights.spec.qk_norm and head_tiling(weights.spec.head_dim) is None
        ):  # then heads are normed in a launch more
            self._qkv = cache.new_empty(self._rows, weights.spec.qkv_size)
            heads = torch.arange(weights.spec.num_kv_heads, device=cache.device) * self._block_size
            self._head_rows = self._kv_rows.unsqueeze(1) + heads

    def queries(self, layer: LayerTensors, k_cache: torch.Tensor, v_cache: torch.Tensor, query: torch.Tensor) -> None:
        """Write the rows' queries, and their keys and values to the cache."""
        if self._qkv is not None:
            self._run(self._normed("plain", layer.qkv, self._qkv, layer.qkv_bias))
            rope_kv_write(
                self._qkv, self._cos, self._sin, self._head_rows, layer.q_norm, layer.k_norm,
                self._weights.spec.norm_eps, k_cache, v_cache, query,
            )  # fmt: skip
            return
        params = self._normed("qkv", layer.qkv, query, layer.qkv_bias)
        if layer.q_norm is not None and layer.k_norm is not None:
            params.q_norm, params.k_norm = layer.q_norm.data_ptr(), layer.k_norm.data_ptr()
        params.cos, params.sin, params.kv_rows = self._cos.data_ptr(), self._sin.data_ptr(), self._kv_rows.data_ptr()
        params.k_cache, params.v_cache = k_cache.data_ptr(), v_cache.data_ptr()
        self._run(params, "qkv")

    def add(self, layer: str, x: torch.Tensor, weight: torch.Tensor, next_norm: torch.Tensor) -> None:
        """Add a sublayer's result, and leave what the layer after the next norm reads."""
        params = self._params("residual", x, weight, self._scaled)
        parts = len(weight) // 16 if self._is_small else self._cut(params).squares(len(weight))
        squares = self._hidden.new_empty(self._rows, parts)
        params.hidden, params.norm = self._hidden.data_ptr(), next_norm.data_ptr()
        params.squares_out = squares.data_ptr()
        scales = self._scales
        if scales is not None:
            self._read_norm(params)
            scales = torch.empty_like(scales)
            params.scales_out = scales.data_ptr()
        self._run(params, layer=layer)
        self._squares, self._scales = squares, scales

    def gated(self, weight: torch.Tensor, activated: torch.Tensor) -> None:
        self._run(self._normed("gated", weight, activated), layer="gate_up")

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, V) and (R, H) float32: the logits, and the stream after the last norm."""
        weights = self._weights
        normed = torch.empty_like(self._hidden)
        parts = self._scaled.new_empty(2, *self._hidden.shape)
        params = self._rows_params(weights.final_norm)
        params.scaled, params.squares = parts.data_ptr(), normed.data_ptr()
        self._run_rows("rows_end_kernel", params)
        logits = self._hidden.new_empty(self._rows, weights.spec.vocab_size)
        head = self._params("logits", parts, weights.head, logits)
        head.parts = 2
        self._run(head)
        return logits, normed

    def _normed(
        self, mode: str, weight: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None = None
    ) -> LayerLinearParams:
        params = self._params(mode, self._scaled, weight, y)
        params.bias = None if bias is None else bias.data_ptr()
        self._read_norm(params)
        return params

    def _read_norm(self, params: LayerLinearParams) -> None:
        """What the stream was when its last layer had been added."""
        params.squares, params.num_squares = self._squares.data_ptr(), self._squares.shape[1]
        params.scales = None if self._scales is None else self._scales.data_ptr()

    def _params(self, mode: str, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> LayerLinearParams:
        spec = self._weights.spec
        return LayerLinearParams(
            x=x.data_ptr(), weight=weight.data_ptr(), y=y.data_ptr(), rows=self._rows, columns=weight.shape[1],
            outputs=weight.shape[0], mode=MODES.index(mode), parts=1, num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim, block_size=self._block_size, eps=spec.norm_eps,
        )  # fmt: skip

    def _run(self, params: LayerLinearParams, layer: str = "head") -> None:
        device, dtype = self._scaled.device, self._scaled.dtype
        if self._is_small and layer != "head":
            run_small(layer, params, self._weights.spec, dtype)
            return
        cut = self._cut(params)
        if isinstance(cut, Wide):
            run_wide(params, cut, dtype, processors(device))
        else:
            run_linear(params, cut, dtype, processors(device))

    def _cut(self, params: LayerLinearParams) -> Tiling | Wide:
        outputs, columns, mode = params.outputs, params.columns, MODES[params.mode]
        if self._takes_wide and is_wide(outputs, columns, mode, params.head_dim):
            return wide_cut(outputs, columns, mode)
        return (head_tiling(params.head_dim) if params.q_norm is not None else None) or tiling(outputs, columns)

    def _rows_params(self, norm: torch.Tensor) -> RowsParams:
        spec = self._weights.spec
        return RowsParams(
            norm=norm.data_ptr(), hidden=self._hidden.data_ptr(), scaled=self._scaled.data_ptr(),
            squares=self._squares.data_ptr(), kv_rows=self._kv_rows.data_ptr(), rows=self._rows,
            scales=None if self._scales is None else self._scales.data_ptr(),
            hidden_size=spec.hidden_size, num_kv_heads=spec.num_kv_heads, block_size=self._block_size,
            eps=spec.norm_eps,
        )  # fmt: skip

    def _run_rows(self, entry: str, params: RowsParams) -> None:
        run_kernel(rows_source(self._scaled.dtype), entry, self._rows, _ROW_THREADS, params, _BLOCK_SUM_BYTES)


def takes_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the launches of wide layers run here."""
    return has_wgmma(device) and has_image(wide_source(dtype))


def run_linear(params: LayerLinearParams, cut: Tiling, dtype: torch.dtype, num_processors: int) -> None:
    """Launch one layer, cut so."""
    outputs, columns, rows = params.outputs, params.columns, params.rows
    params.row_warps, params.tiles = cut.row_warps, cut.tiles(outputs)
    bucket = block_rows(cut, outputs, columns, rows, params.parts)
    groups = -(-rows // bucket)
    most_bytes = shared_bytes(cut, columns, bucket, params.parts, STAGES)
    num_clusters = clusters(cut, outputs, bucket, most_bytes, groups, num_processors)
    num_bytes = shared_bytes(cut, columns, bucket, params.parts, -(-params.tiles // num_clusters))
    run_kernel(
        linear_source(dtype), f"layer_linear_{bucket}_kernel", (num_clusters * cut.cluster, groups), THREADS, params,
        num_bytes, cluster=cut.cluster,
    )  # fmt: skip
