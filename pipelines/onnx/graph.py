"""The decoder's step as an ONNX graph: see `runtime.formats.step_graph` for its inputs and outputs.

Weights stay where they are: initializers point into the checkpoint's file. Linear layers are Gemm over rows, with the
weight transposed, as the checkpoint stores (out, in). The residual stream, norms and logits are float32 at least, as in
our own decoder; all else is in the graph's dtype.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import FunctionProto, ModelProto, TensorProto, ValueInfoProto

from pipelines.onnx.builder import GraphBuilder, value
from pipelines.onnx.external import stored_tensors
from plugins.attention.onnx import attention_function, attention_node
from plugins.rope_kv_write.onnx import rope_kv_write_function, rope_kv_write_node
from runtime.formats import step_graph as names
from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, WEIGHTS_FILE, Checkpoint, layer_prefix
from runtime.model.rope import rope_table
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class GraphOptions:
    """What one graph of a model is written for."""

    dtype: str  # that it computes in; weights stored in another are cast in the graph
    cache_len: int  # Smax
    slices_cache: bool = False  # see `attention_function`: for a runtime that reads all keys that a mask covers
    weights_location: str = WEIGHTS_FILE  # of the checkpoint's file, relative to the graph's


def write_step_model(checkpoint: Checkpoint, options: GraphOptions, folder: Path) -> Path:
    """Write `model.onnx` and return its path; the weights' file is not copied.

    Raises:
        EnginewrightError: the checkpoint's weights cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / names.GRAPH_FILE
    path.write_bytes(step_model(checkpoint, options).SerializeToString(deterministic=True))
    return path


def step_model(checkpoint: Checkpoint, options: GraphOptions) -> ModelProto:
    """The graph of one step of a checkpoint's model.

    Raises:
        EnginewrightError: the checkpoint's weights cannot be read.
    """
    spec, builder = checkpoint.spec, GraphBuilder(options.dtype)
    builder.store(stored_tensors(checkpoint.path / WEIGHTS_FILE), options.weights_location)
    _Step(spec, builder).write(options)
    caches = list(names.cache_names(spec.num_layers))

    def cache(name: str) -> ValueInfoProto:
        return value(name, builder.type, ["batch", spec.num_kv_heads, options.cache_len, spec.head_dim])

    return builder.model(
        "step",
        [*_step_inputs(options), *map(cache, caches)],
        [value(names.LOGITS, builder.wide, ["emits", spec.vocab_size]),
         value(names.HIDDEN, builder.wide, ["emits", spec.hidden_size]), *(cache(names.NEW + name) for name in caches)],
        _functions(spec, options),
    )  # fmt: skip


def _step_inputs(options: GraphOptions) -> list[ValueInfoProto]:
    keys = "keys" if options.slices_cache else options.cache_len
    return [
        value(names.TOKEN_IDS, TensorProto.INT64, ["batch", "rows"]),
        value(names.POSITION_IDS, TensorProto.INT64, ["batch", "rows"]),
        value(names.WRITE_STARTS, TensorProto.INT64, ["batch"]),
        value(names.ATTENTION_MASK, TensorProto.BOOL, ["batch", 1, "rows", keys]),
        value(names.LOGIT_ROWS, TensorProto.INT64, ["emits"]),
    ]


def _functions(spec: ModelSpec, options: GraphOptions) -> list[FunctionProto]:
    is_double = options.dtype == "float64"
    return [
        rope_kv_write_function(
            spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.norm_eps, spec.qk_norm, is_double
        ),
        attention_function(spec.num_heads, spec.head_dim, options.slices_cache, is_double),
    ]  # fmt: skip


class _Step:
    """Writes a model's layers with a builder that knows its weights."""

    def __init__(self, spec: ModelSpec, builder: GraphBuilder) -> None:
        self._spec = spec
        self._to = builder

    def write(self, options: GraphOptions) -> None:
        self._constants(options)
        hidden = self._embed()
        for layer in range(self._spec.num_layers):
            hidden = self._layer(layer, hidden)
        self._emit(hidden)

    def _constants(self, options: GraphOptions) -> None:
        """Rotary rows for every position of a slot, and the shapes that every layer reshapes to."""
        half = self._spec.head_dim // 2
        table = rope_table(self._spec, options.cache_len, getattr(torch, options.dtype))
        self._to.table("rope_cos", table.cos[:, :half])
        self._to.table("rope_sin", table.sin[:, half:])
        self._to.integers("all_heads", [-1])
        self._to.integers("flat_heads", [-1, self._spec.q_size])
        shape = self._to.add("Shape", [names.TOKEN_IDS], "dense_shape")
        self._to.add("Concat", [shape, "all_heads"], "qkv_shape", axis=0)

    def _embed(self) -> str:
        """Residual stream (B * S, H), wide."""
        self._to.integers("one_row", [-1])
        flat = self._to.add("Reshape", [names.TOKEN_IDS, "one_row"], "flat_token_ids")
        rows = self._to.add("Gather", [self._to.stored(EMBEDDING), flat], "embedded")
        return self._to.cast(rows, self._to.stored_type(EMBEDDING), self._to.wide)

    def _layer(self, layer: int, hidden: str) -> str:
        spec, prefix = self._spec, layer_prefix(layer)
        normed = self._norm(hidden, prefix + "input_layernorm.weight")
        bias = prefix + "attention.qkv.bias" if spec.qkv_bias else ""
        qkv = self._to.linear(normed, prefix + "attention.qkv.weight", bias)
        context = self._attend(layer, self._to.add("Reshape", [qkv, "qkv_shape"], f"{prefix}qkv"))
        if layer == spec.num_layers - 1:  # past the last keys and values, only rows that get logits matter
            hidden = self._to.add("Gather", [hidden, names.LOGIT_ROWS], "emitting_hidden")
            context = self._to.add("Gather", [context, names.LOGIT_ROWS], "emitting_context")
        hidden = self._add_to(hidden, self._to.linear(context, prefix + "attention.dense.weight"))
        normed = self._norm(hidden, prefix + "post_layernorm.weight")
        activated = self._to.silu(self._to.linear(normed, prefix + "mlp.fc.weight"))
        gated = self._to.add("Mul", [activated, self._to.linear(normed, prefix + "mlp.gate.weight")])
        return self._add_to(hidden, self._to.linear(gated, prefix + "mlp.proj.weight"))

    def _attend(self, layer: int, qkv: str) -> str:
        """(B, S, (N + 2 N_kv) D) to (B * S, N D)."""
        spec, prefix = self._spec, layer_prefix(layer)
        sizes = {"num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads, "head_dim": spec.head_dim}
        caches = [f"k_cache_{layer}", f"v_cache_{layer}"]
        q, new = f"{prefix}q", [names.NEW + name for name in caches]
        norms = [self._to.weight(f"{prefix}attention.{name}_layernorm.weight") for name in "qk" if spec.qk_norm]
        inputs = [qkv, "rope_cos", "rope_sin", names.POSITION_IDS, names.WRITE_STARTS, *caches, *norms]
        self._to.append(rope_kv_write_node(inputs, [q, *new], **sizes, eps=spec.norm_eps))
        self._to.append(attention_node(q, new[0], new[1], names.ATTENTION_MASK, f"{prefix}context", **sizes))
        return self._to.add("Reshape", [f"{prefix}context", "flat_heads"], f"{prefix}flat_context")

    def _emit(self, hidden: str) -> None:
        """The graph's outputs from the rows that get logits."""
        weight = self._to.weight(FINAL_NORM, wide=True)
        self._to.add("RMSNormalization", [hidden, weight], names.HIDDEN, axis=-1, epsilon=self._spec.norm_eps)
        rows = self._to.cast(names.HIDDEN, self._to.wide, self._to.type)
        logits = self._to.linear(rows, EMBEDDING if self._spec.tied_head else LM_HEAD)
        self._to.add("Cast", [logits], names.LOGITS, to=self._to.wide)

    def _norm(self, hidden: str, weight: str) -> str:
        """Norm of wide rows, in the graph's dtype."""
        inputs = [hidden, self._to.weight(weight, wide=True)]
        normed = self._to.add("RMSNormalization", inputs, axis=-1, epsilon=self._spec.norm_eps)
        return self._to.cast(normed, self._to.wide, self._to.type)

    def _add_to(self, hidden: str, sublayer: str) -> str:
        return self._to.add("Add", [hidden, self._to.cast(sublayer, self._to.type, self._to.wide)])
