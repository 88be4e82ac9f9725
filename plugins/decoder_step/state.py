"""What a step's launches keep between them, and the parameters of one; on a GPU, or on the CPU for the emulator."""

import ctypes

import torch

from plugins.decoder_step.plan import StepPlan
from plugins.decoder_step.weights import StepSpec, StepWeights

_POINTERS = (
    "layers", "embedding", "final_norm", "head", "cos", "sin", "token_ids", "positions", "query_starts", "context_lens",
    "block_tables", "ancestors", "cache", "logits", "hidden", "exchange", "launches", "split_parts", "split_counts",
)  # fmt: skip
_EXCHANGED_SPLITS = 4
_COUNTS = ("num_rows", "num_requests", "max_blocks", "max_nodes", "max_splits")


class DecoderStepParams(ctypes.Structure):
    """Mirror of the struct in decoder_step.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("layer_stride", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in _COUNTS),
        ("norm_eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("unused", ctypes.c_int),
    )


class StepState:
    """Buffers of the steps of one model, row bucket and cache, run by `num_blocks` thread blocks.

    Args:
        weights: contiguous bfloat16 tensors on the cache's device; kept.
        cache: (2 L, num_blocks, N_kv, block_size, D) bfloat16, contiguous; kept.
        max_context: the most tokens that a request has in the cache.

    Raises:
        ValueError: a tensor of another dtype, device, layout or alignment.
    """

    def __init__(
        self, weights: StepWeights, cache: torch.Tensor, plan: StepPlan, max_context: int, num_blocks: int
    ) -> None:
        _check_tensors(weights, cache)
        spec, rows, device = weights.spec, plan.rows, cache.device
        self._weights, self._cache, self._rows = weights, cache, rows
        pointers = [[_pointer(tensor) for tensor in layer] for layer in weights.layers]
        self._layers = torch.tensor(pointers, dtype=torch.int64, device=device)
        self._exchange = torch.full((2, exchange_words(spec, plan)), -1, dtype=torch.int32, device=device)
        self._launches = torch.zeros(num_blocks, dtype=torch.int32, device=device)
        self._max_splits = -(-max_context // plan.split_keys)
        parts = rows * spec.num_heads * self._max_splits
        self._split_parts = torch.zeros(parts * _part_words(spec), dtype=torch.int32, device=device)
        self._split_counts = torch.zeros(rows * spec.num_kv_heads, dtype=torch.int32, device=device)

    def params(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        query_starts: torch.Tensor,
        context_lens: torch.Tensor,
        block_tables: torch.Tensor,
        ancestors: torch.Tensor | None,
        logits: torch.Tensor,
        hidden: torch.Tensor,
    ) -> DecoderStepParams:
        """Return the parameters of a step; arguments as in `plugins.decoder_step`, which must outlive it."""
        spec, weights, num_rows = self._weights.spec, self._weights, len(token_ids)
        if not 1 <= num_rows <= self._rows:
            raise ValueError(f"a step of {num_rows} rows; this one is compiled for 1 to {self._rows}")
        indices = [token_ids, positions, query_starts, context_lens, block_tables]
        for tensor in indices if ancestors is None else [*indices, ancestors]:
            if tensor.dtype != torch.int64 or not tensor.is_contiguous() or tensor.device != self._cache.device:
                raise ValueError("a batch must be contiguous int64 tensors on the cache's device")
        for out, width in ((logits, spec.vocab_size), (hidden, spec.hidden_size)):
            if out.shape != (num_rows, width) or out.dtype != torch.float32 or not out.is_contiguous():
                raise ValueError(f"output of {tuple(out.shape)} {out.dtype}; it must be ({num_rows}, {width}) float32")
        return DecoderStepParams(
            layers=_pointer(self._layers), embedding=_pointer(weights.embedding),
            final_norm=_pointer(weights.final_norm), head=_pointer(weights.head), cos=_pointer(weights.cos),
            sin=_pointer(weights.sin), token_ids=_pointer(token_ids), positions=_pointer(positions),
            query_starts=_pointer(query_starts), context_lens=_pointer(context_lens),
            block_tables=_pointer(block_tables), ancestors=_pointer(ancestors), cache=_pointer(self._cache),
            logits=_pointer(logits), hidden=_pointer(hidden), exchange=_pointer(self._exchange),
            launches=_pointer(self._launches), split_parts=_pointer(self._split_parts),
            split_counts=_pointer(self._split_counts),
            layer_stride=self._cache[0].numel(), num_rows=num_rows, num_requests=len(context_lens),
            max_blocks=block_tables.shape[1], max_nodes=0 if ancestors is None else ancestors.shape[1],
            max_splits=self._max_splits, norm_eps=spec.norm_eps, scale=spec.head_dim**-0.5,
        )  # fmt: skip


def exchange_words(spec: StepSpec, plan: StepPlan) -> int:
    """Words of one set of the exchange: see exchange.cuh."""
    q_size = spec.num_heads * spec.head_dim
    qkv_size = q_size + 2 * spec.num_kv_heads * spec.head_dim
    parts = spec.num_heads * _EXCHANGED_SPLITS * _part_words(spec)
    row = qkv_size + q_size // 2 + spec.intermediate_size // 2 + 2 * spec.hidden_size + parts
    return plan.rows * (spec.num_layers * row + spec.hidden_size)


def _part_words(spec: StepSpec) -> int:
    return spec.head_dim + 4


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check_tensors(weights: StepWeights, cache: torch.Tensor) -> None:
    tensors = [cache, *weights[2:], *(tensor for layer in weights.layers for tensor in layer if tensor is not None)]
    for tensor in tensors:
        if tensor.dtype != torch.bfloat16 or not tensor.is_contiguous() or tensor.device != cache.device:
            raise ValueError("weights and cache must be contiguous bfloat16 tensors on one device")
        if tensor.data_ptr() % 16:
            raise ValueError("weights and cache must be 16-byte aligned")
