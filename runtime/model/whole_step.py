"""The decoder's pass over few rows as one launch, where a GPU kernel takes the model."""

import torch

from plugins.cuda.launch import max_shared_bytes
from plugins.cuda.source import KernelSource
from plugins.decoder_step.cuda import DecoderStep, step_source
from plugins.decoder_step.plan import SHARED_BYTES, plan_step, supports
from plugins.decoder_step.weights import StepLayer, StepSpec, StepWeights
from plugins.linear.two_part import TwoPartLinear
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput, LayerWeights
from runtime.model.few_rows import row_major_linears, wanted_rows
from runtime.spec import ModelSpec

ARCHS = ("sm_90a", "sm_100")  # whose blocks may have as much shared memory as the kernel is laid out for
ROWS = (1, 4)  # a kernel is compiled for each, and a step takes the smallest that holds it; with more rows the ops win


def step_spec(spec: ModelSpec) -> StepSpec:
    """What the kernel is compiled for."""
    return StepSpec(*(getattr(spec, name) for name in StepSpec._fields))


def rows_of(spec: ModelSpec, dtype: torch.dtype) -> tuple[int, ...]:
    """The row counts whose kernels take this model; none where it goes through the ops alone."""
    return tuple(rows for rows in ROWS if supports(step_spec(spec), dtype, rows) is None)


def step_sources(spec: ModelSpec, dtype: torch.dtype, block_size: int) -> list[KernelSource]:
    """What is compiled for a model; for the architectures of `ARCHS`."""
    sizes = step_spec(spec)
    plans = [plan_step(sizes, rows) for rows in rows_of(spec, dtype)]
    return [step_source(sizes, plan, block_size) for plan in plans if not isinstance(plan, str)]


class WholeStep:
    """Steps of up to `max(rows_of(...))` tokens over one cache. Shares the decoder's weights."""

    def __init__(self, decoder: Decoder, cache: KVCache, max_seq_len: int) -> None:
        self._spec = decoder.spec
        has_room = max_shared_bytes(torch.cuda.current_device()) >= SHARED_BYTES
        rows = rows_of(decoder.spec, cache.storage.dtype) if has_room else ()
        weights = _step_weights(decoder) if rows else None
        self._steps = {count: DecoderStep(weights, cache.storage, count, max_seq_len) for count in rows if weights}

    def takes(self, batch: Batch) -> bool:
        """Whether a kernel holds the batch."""
        return bool(self._steps) and max(len(batch.token_ids), len(batch.context_lens)) <= max(self._steps)

    def forward(self, batch: Batch) -> DecoderOutput:
        """As `Decoder.forward`, over the cache given at first."""
        num_rows = len(batch.token_ids)
        rows = min(count for count in self._steps if count >= max(num_rows, len(batch.context_lens)))
        device = batch.token_ids.device
        logits = torch.empty(num_rows, self._spec.vocab_size, device=device)
        hidden = torch.empty(num_rows, self._spec.hidden_size, device=device)
        self._steps[rows](
            batch.token_ids, batch.positions, batch.query_starts, batch.context_lens, batch.block_tables,
            batch.ancestors, logits, hidden,
        )  # fmt: skip
        return wanted_rows(batch, logits, hidden)


def _step_weights(decoder: Decoder) -> StepWeights:
    head = decoder.head
    assert isinstance(head, TwoPartLinear), "the whole step reads 16-bit weights"
    return StepWeights(
        spec=step_spec(decoder.spec),
        layers=[_step_layer(layer) for layer in decoder.layers],
        embedding=decoder.embedding,
        final_norm=decoder.final_norm.to(decoder.embedding.dtype),
        head=head.weight,
        cos=decoder.rope.cos,
        sin=decoder.rope.sin,
    )


def _step_layer(layer: LayerWeights) -> StepLayer:
    qkv, dense, gate_up, down = row_major_linears(layer)
    fc, gate = gate_up.weight.chunk(2)
    return StepLayer(
        layer.input_norm, qkv.weight, qkv.bias, layer.q_norm, layer.k_norm, dense.weight, layer.post_norm, fc, gate,
        down.weight,
    )  # fmt: skip
