"""What the kernels for steps of few rows share: the weights that they read, and the rows that are wanted of them."""

import torch

from plugins.linear.plain import PlainLinear
from runtime.batch import Batch
from runtime.model.decoder import DecoderOutput, LayerWeights


def row_major_linears(layer: LayerWeights) -> tuple[PlainLinear, PlainLinear, PlainLinear, PlainLinear]:
    """A layer's qkv, dense, gate_up and down, (out, in) each."""
    qkv, dense, gate_up, down = layer.qkv, layer.dense, layer.gate_up, layer.down
    assert isinstance(qkv, PlainLinear), "the kernels read row-major weights"
    assert isinstance(dense, PlainLinear), "the kernels read row-major weights"
    assert isinstance(gate_up, PlainLinear), "the kernels read row-major weights"
    assert isinstance(down, PlainLinear), "the kernels read row-major weights"
    return qkv, dense, gate_up, down


def wanted_rows(batch: Batch, logits: torch.Tensor, hidden: torch.Tensor) -> DecoderOutput:
    """Of a pass that gave logits (T, V) and hidden states (T, H) to every token."""
    if len(batch.logit_rows) == len(batch.token_ids):  # then they are all rows, in order
        return DecoderOutput(logits, hidden)
    return DecoderOutput(logits[batch.logit_rows], hidden[batch.logit_rows])
