"""The whole-step kernel on a GPU: what it keeps between steps, and its launch."""

import ctypes

import torch

from plugins.cuda.launch import launch
from plugins.cuda.library import get_kernel
from plugins.cuda.source import KernelSource
from plugins.decoder_step.plan import StepPlan, defines, plan_step, shared_bytes
from plugins.decoder_step.weights import StepSpec, StepWeights

_THREADS = 288  # 8 consumer warps and the one that fills the ring
_POINTERS = (
    "layers", "embedding", "final_norm", "head", "cos", "sin", "token_ids", "positions", "query_starts", "context_lens",
    "block_tables", "ancestors", "cache", "logits", "hidden", "exchange", "launches", "split_outputs", "split_softmax",
    "split_counts",
)  # fmt: skip
_COUNTS = ("num_rows", "num_requests", "max_blocks", "max_nodes", "max_splits")


class DecoderStepParams(ctypes.Structure):
    """Mirror of the struct in decoder_step.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("layer_stride", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in _COUNTS),
        ("norm_eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("unused", ctypes.c_int),
    ]


def step_source(spec: StepSpec, plan: StepPlan, block_size: int) -> KernelSource:
    """Return what is compiled for steps of one model, row bucket and cache."""
    return KernelSource(
        "decoder_step", "decoder_step/decoder_step.cu", tuple(defines(spec, plan, block_size).items())
    )  # fmt: skip


class DecoderStep:
    """Steps of up to `rows` rows of one model over one cache, on the current device.

    Owns what its launches hand each other, so steps of one object run one after another, on one stream or ordered by
    events. A graph may hold any number of them.

    Args:
        weights: contiguous bfloat16 tensors on the device; kept.
        cache: (2 L, num_blocks, N_kv, block_size, D) bfloat16, contiguous; kept.
        rows: the most rows of a step.
        max_context: the most tokens that a request has in the cache.

    Raises:
        ValueError: the kernel cannot take this model or so many rows; see `plan.supports`.
        KernelError: the engine has no image for it.
    """

    def __init__(self, weights: StepWeights, cache: torch.Tensor, rows: int, max_context: int) -> None:
        spec = weights.spec
        plan = plan_step(spec, rows)
        if isinstance(plan, str):
            raise ValueError(plan)
        _check_tensors(weights, cache)
        self._weights, self._cache, self._plan = weights, cache, plan
        device = cache.device
        self._kernel = get_kernel(step_source(spec, plan, cache.shape[3]), "decoder_step_kernel", DecoderStepParams)
        self._grid = torch.cuda.get_device_properties(device).multi_processor_count
        pointers = [[_pointer(tensor) for tensor in layer] for layer in weights.layers]
        self._layers = torch.tensor(pointers, dtype=torch.int64, device=device)
        self._exchange = torch.full((2, exchange_words(spec, rows)), -1, dtype=torch.int32, device=device)
        self._launches = torch.zeros(self._grid, dtype=torch.int32, device=device)
        self._max_splits = -(-max_context // plan.split_keys)
        splits = rows * spec.num_heads * self._max_splits
        self._split_outputs = torch.empty(splits * spec.head_dim, device=device)
        self._split_softmax = torch.empty(splits * 2, device=device)
        self._split_counts = torch.zeros(rows * spec.num_kv_heads, dtype=torch.int32, device=device)

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        query_starts: torch.Tensor,
        context_lens: torch.Tensor,
        block_tables: torch.Tensor,
        ancestors: torch.Tensor | None,
        logits: torch.Tensor,
        hidden: torch.Tensor,
    ) -> None:
        """Launch one step on the current stream; see the package for the arguments."""
        spec = self._weights.spec
        num_rows = len(token_ids)
        if not 1 <= num_rows <= self._plan.rows:
            raise ValueError(f"a step of {num_rows} rows; this one is compiled for 1 to {self._plan.rows}")
        indices = [token_ids, positions, query_starts, context_lens, block_tables]
        for tensor in [*indices, ancestors] if ancestors is not None else indices:
            if tensor.dtype != torch.int64 or not tensor.is_contiguous() or tensor.device != self._cache.device:
                raise ValueError("the batch must be contiguous int64 tensors on the cache's device")
        for out, width in ((logits, spec.vocab_size), (hidden, spec.hidden_size)):
            if out.shape != (num_rows, width) or out.dtype != torch.float32 or not out.is_contiguous():
                raise ValueError(
                    f"an output is {tuple(out.shape)} {out.dtype}; it must be ({num_rows}, {width}) float32"
                )
        params = DecoderStepParams(
            layers=_pointer(self._layers), embedding=_pointer(self._weights.embedding),
            final_norm=_pointer(self._weights.final_norm), head=_pointer(self._weights.head),
            cos=_pointer(self._weights.cos), sin=_pointer(self._weights.sin), token_ids=_pointer(token_ids),
            positions=_pointer(positions), query_starts=_pointer(query_starts), context_lens=_pointer(context_lens),
            block_tables=_pointer(block_tables), ancestors=_pointer(ancestors), cache=_pointer(self._cache),
            logits=_pointer(logits), hidden=_pointer(hidden), exchange=_pointer(self._exchange),
            launches=_pointer(self._launches), split_outputs=_pointer(self._split_outputs),
            split_softmax=_pointer(self._split_softmax), split_counts=_pointer(self._split_counts),
            layer_stride=self._cache[0].numel(), num_rows=num_rows, num_requests=len(context_lens),
            max_blocks=block_tables.shape[1], max_nodes=0 if ancestors is None else ancestors.shape[1],
            max_splits=self._max_splits, norm_eps=spec.norm_eps, scale=spec.head_dim**-0.5,
        )  # fmt: skip
        shared = shared_bytes(spec, self._plan)
        stream = torch.cuda.current_stream().cuda_stream
        launch(self._kernel, self._grid, _THREADS, shared, params, stream, cooperative=True)


def exchange_words(spec: StepSpec, rows: int) -> int:
    """Words of one set of the exchange: see exchange.cuh."""
    q_size = spec.num_heads * spec.head_dim
    qkv_size = q_size + 2 * spec.num_kv_heads * spec.head_dim
    return spec.num_layers * rows * (qkv_size + q_size // 2 + spec.intermediate_size // 2 + 2 * spec.hidden_size)


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check_tensors(weights: StepWeights, cache: torch.Tensor) -> None:
    tensors = [cache, *weights[2:], *(tensor for layer in weights.layers for tensor in layer if tensor is not None)]
    for tensor in tensors:
        if tensor.dtype != torch.bfloat16 or not tensor.is_contiguous() or tensor.device != cache.device:
            raise ValueError("weights and cache must be contiguous bfloat16 tensors on one device")
        if tensor.data_ptr() % 16:
            raise ValueError("weights and cache must be 16-byte aligned")
