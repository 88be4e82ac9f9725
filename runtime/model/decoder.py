"""One decoder for every supported model: weights packed for this machine, and the pass over a packed batch."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from plugins.attention import AttentionShape, attention, plan_attention
from plugins.linear import LinearKind, PackedLinear, pack_head, pack_linear
from plugins.residual_rms_norm import residual_rms_norm
from plugins.rms_norm import rms_norm
from plugins.rope_kv_write import rope_kv_write
from plugins.silu_mul import silu_mul
from runtime.batch import Batch
from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, Checkpoint, layer_prefix
from runtime.kv.cache import KVCache
from runtime.model.rope import rope_table
from runtime.spec import ModelSpec
from runtime.speculation.tree import MAX_NODES


@dataclass(frozen=True)
class LayerWeights:
    input_norm: torch.Tensor
    qkv: PackedLinear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    dense: PackedLinear
    post_norm: torch.Tensor
    gate_up: PackedLinear  # mlp.fc (activated) above mlp.gate
    down: PackedLinear


class DecoderOutput(NamedTuple):
    logits: torch.Tensor  # (R, V) float32, or wider where the weights are
    hidden: torch.Tensor  # (R, H), after the final norm, same dtype


class Decoder:
    """Weights of one model in `dtype` on `device`, ready to run.

    Raises:
        ValueError: `linear` cannot be done here, or not in `dtype`.
        EnginewrightError: the checkpoint is damaged.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, linear: LinearKind, max_seq_len: int, device: str = "cpu"
    ) -> None:
        self.spec = checkpoint.spec
        self.device = torch.device(device)
        self._dtype = dtype
        weights = {name: tensor.to(device, dtype) for name, tensor in checkpoint.tensors()}
        # On the CPU a weight may lie in the mapped file, which a copy lets go of.
        self.embedding = weights[EMBEDDING] if weights[EMBEDDING].is_cuda else weights[EMBEDDING].clone()
        self.layers = [_pack_layer(self.spec, weights, index, linear) for index in range(self.spec.num_layers)]
        # The residual stream and the logits are float32 at least: bfloat16 would round the sum of every layer, and its
        # logits of size 25 are 1/8 apart, so that rounding would decide near ties.
        wide = torch.promote_types(dtype, torch.float32)
        self.final_norm = weights[FINAL_NORM].to(wide, copy=True)
        head = weights[EMBEDDING if self.spec.tied_head else LM_HEAD]
        self.head = pack_head(linear, head)
        # Nodes of a draft tree at a text's end lie past it.
        self.rope = rope_table(self.spec, max_seq_len + MAX_NODES, dtype, device)

    def empty_hidden(self) -> torch.Tensor:
        """(0, H), of the dtype and device of `DecoderOutput.hidden`."""
        return self.final_norm.new_empty(0, self.spec.hidden_size)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> DecoderOutput:
        """Run all layers over the batch, writing its keys and values to `cache`."""
        spec = self.spec
        shape = AttentionShape(spec.num_heads, spec.num_kv_heads, cache.block_size, spec.sliding_window, spec.head_dim)
        plan = plan_attention(
            shape, batch.query_starts, batch.context_lens, batch.block_tables, self._dtype, batch.ancestors,
            len(batch.token_ids), batch.max_query_len,
        )  # fmt: skip
        cos, sin = self.rope.cos[batch.positions], self.rope.sin[batch.positions]
        kv_rows = cache.rows(batch.token_blocks(cache.block_size), batch.cache_positions)
        embedded = self.embedding[batch.token_ids]
        hidden = embedded.to(self.final_norm.dtype)
        normed = torch.empty_like(embedded)
        query = embedded.new_empty(len(hidden), spec.num_heads, spec.head_dim)
        context = torch.empty_like(query)
        activated = embedded.new_empty(len(hidden), spec.intermediate_size)
        rms_norm(hidden, self.layers[0].input_norm, spec.norm_eps, normed)
        for index, (layer, (k_cache, v_cache)) in enumerate(zip(self.layers, cache.layers, strict=True)):
            rope_kv_write(
                layer.qkv(normed), cos, sin, kv_rows, layer.q_norm, layer.k_norm, spec.norm_eps, k_cache, v_cache, query
            )
            attention(query, k_cache, v_cache, plan, spec.head_dim**-0.5, context)
            if layer is self.layers[-1]:  # past the last keys and values, only rows that get logits matter
                hidden, context = hidden[batch.logit_rows], context[batch.logit_rows]
                normed, activated = (like.new_empty(len(hidden), like.shape[1]) for like in (normed, activated))
            residual_rms_norm(hidden, layer.dense(context.flatten(1)), layer.post_norm, spec.norm_eps, normed)
            sublayer = layer.down(silu_mul(layer.gate_up(normed), activated))
            if layer is not self.layers[-1]:
                residual_rms_norm(hidden, sublayer, self.layers[index + 1].input_norm, spec.norm_eps, normed)
        final = torch.empty_like(hidden)
        residual_rms_norm(hidden, sublayer, self.final_norm, spec.norm_eps, final)
        return DecoderOutput(self.head(final), final)


def _pack_layer(spec: ModelSpec, weights: dict[str, torch.Tensor], index: int, linear: LinearKind) -> LayerWeights:
    """Take one layer's tensors out of `weights`, so that the unpacked copies can go."""
    prefix = layer_prefix(index)

    def take(name: str) -> torch.Tensor:
        return weights.pop(prefix + name)

    return LayerWeights(
        input_norm=take("input_layernorm.weight").clone(),
        qkv=pack_linear(linear, take("attention.qkv.weight"), take("attention.qkv.bias") if spec.qkv_bias else None),
        q_norm=take("attention.q_layernorm.weight").clone() if spec.qk_norm else None,
        k_norm=take("attention.k_layernorm.weight").clone() if spec.qk_norm else None,
        dense=pack_linear(linear, take("attention.dense.weight")),
        post_norm=take("post_layernorm.weight").clone(),
        gate_up=pack_linear(linear, torch.cat([take("mlp.fc.weight"), take("mlp.gate.weight")])),
        down=pack_linear(linear, take("mlp.proj.weight")),
    )
