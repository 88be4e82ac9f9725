"""The decoder's pass over up to 64 rows in a few launches a layer, where GPU kernels take the model."""

import torch

from plugins.attention.few_rows import FEW_HEAD_DIMS, few_source
from plugins.cuda.launch import max_shared_bytes
from plugins.cuda.source import KernelSource
from plugins.layer_step.cuda import LayerStep, linear_source, rows_source
from plugins.layer_step.layout import MOST_ROWS, SHARED_BYTES, is_wide, supports
from plugins.layer_step.params import LINEAR_MODES
from plugins.layer_step.small import is_small, small_source
from plugins.layer_step.weights import LayerSpec, LayerTensors, LayerWeights
from plugins.layer_step.wide import wide_source
from plugins.linear.two_part import TwoPartLinear
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput
from runtime.model.decoder import LayerWeights as DecoderLayer
from runtime.model.few_rows import row_major_linears, wanted_rows
from runtime.spec import ModelSpec

ARCHS = ("sm_90a", "sm_100")  # with clusters, and as much shared memory in a block as the layers are cut for


def most_rows(spec: ModelSpec, dtype: torch.dtype) -> int:
    """The most rows of a step whose layers all fit; 0 where the model goes through the ops alone."""
    sizes = layer_spec(spec)
    return max((rows for rows in range(1, MOST_ROWS + 1) if supports(sizes, dtype, rows) is None), default=0)


def has_small_layers(spec: ModelSpec) -> bool:
    """Whether these launches took less time than the whole-step kernel on an H100, at any number of rows."""
    return is_small(layer_spec(spec))


def usual_rows(spec: ModelSpec, has_wide: bool = False) -> int:
    """Rows up to which these launches took less time than the ops on an H100, fitted to SmolLM2-135M and Llama-3.2-1B.

    They save about 16 us a layer, and lose some with each row, the more the larger the layers are; nothing where the
    layers are small, or all go through the launches of wide ones (`has_wide`). `runtime.tuning` measures it.
    """
    if has_small_layers(spec) or (has_wide and all(_wide_linears(spec))):
        return MOST_ROWS
    layer_mb = 2 * spec.num_parameters / spec.num_layers / 1e6
    return int(16.0 / (0.25 + 0.012 * layer_mb))


def layer_sources(spec: ModelSpec, dtype: torch.dtype) -> list[KernelSource]:
    """What is compiled for a model; for the architectures of `ARCHS`."""
    if not most_rows(spec, dtype):
        return []
    sizes = layer_spec(spec)
    attention = [few_source(dtype, spec.head_dim)] if spec.head_dim in FEW_HEAD_DIMS else []
    small = [small_source(sizes, dtype)] if is_small(sizes) else []
    return [linear_source(dtype), rows_source(dtype), *attention, *small]


def wide_sources(spec: ModelSpec, dtype: torch.dtype) -> list[KernelSource]:
    """What is compiled besides, for `plugins.layer_step.wide.ARCHS`, where layers of the model are wide."""
    return [wide_source(dtype)] if any(_wide_linears(spec)) and most_rows(spec, dtype) else []


def _wide_linears(spec: ModelSpec) -> list[bool]:
    linears = layer_spec(spec).linears.items()
    return [is_wide(*sizes, LINEAR_MODES[name], spec.head_dim) for name, sizes in linears]


def layer_spec(spec: ModelSpec) -> LayerSpec:
    return LayerSpec(*(getattr(spec, name) for name in LayerSpec._fields))


class LayerSteps:
    """Steps of up to 64 tokens over one cache. Shares the decoder's weights."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        fits = max_shared_bytes(torch.cuda.current_device()) >= SHARED_BYTES
        self._most_rows = most_rows(decoder.spec, cache.storage.dtype) if fits else 0
        self._step = LayerStep(_weights(decoder), cache.storage) if self._most_rows else None

    def takes(self, batch: Batch) -> bool:
        """Whether the kernels hold the batch."""
        return 0 < len(batch.token_ids) <= self._most_rows

    def forward(self, batch: Batch) -> DecoderOutput:
        """As `Decoder.forward`, over the cache given at first."""
        assert self._step is not None, "takes() says whether there is one"
        logits, hidden = self._step(
            batch.token_ids, batch.positions, batch.cache_positions, batch.query_starts, batch.context_lens,
            batch.block_tables, batch.ancestors,
        )  # fmt: skip
        return wanted_rows(batch, logits, hidden)


def _weights(decoder: Decoder) -> LayerWeights:
    head = decoder.head
    assert isinstance(head, TwoPartLinear), "the kernels read 16-bit weights"
    return LayerWeights(
        spec=layer_spec(decoder.spec),
        layers=[_tensors(layer) for layer in decoder.layers],
        embedding=decoder.embedding,
        final_norm=decoder.final_norm,
        head=head.weight,
        cos=decoder.rope.cos,
        sin=decoder.rope.sin,
    )


def _tensors(layer: DecoderLayer) -> LayerTensors:
    qkv, dense, gate_up, down = row_major_linears(layer)
    return LayerTensors(
        layer.input_norm, qkv.weight, qkv.bias, layer.q_norm, layer.k_norm, dense.weight, layer.post_norm,
        gate_up.weight, down.weight,
    )  # fmt: skip
