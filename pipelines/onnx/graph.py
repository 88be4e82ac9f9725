"""The decoder's step as an ONNX graph: see `runtime.formats.step_graph` for its inputs and outputs.

Weights stay where they are: initializers point into the checkpoint's file. Linear layers are Gemm over rows, with the
weight transposed, as the checkpoint stores (out, in). The residual stream, norms and logits are float32 at least, as in
our own decoder; all else is in the graph's dtype.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from pipelines.onnx.external import ONNX_TYPES, external_initializer, stored_tensors
from plugins.attention.onnx import attention_function, attention_node
from plugins.onnx_functions import DOMAIN, DOMAIN_VERSION, OPSET, integers
from plugins.rope_kv_write.onnx import rope_kv_write_function, rope_kv_write_node
from runtime.formats import step_graph as names
from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, WEIGHTS_FILE, Checkpoint, layer_prefix
from runtime.model.rope import rope_table

IR_VERSION = 11  # the first of opset 24's onnx; what TensorRT-RTX 1.7 reads


@dataclass(frozen=True)
class GraphOptions:
    """What one graph of a model is written for."""

    dtype: str  # that it computes in; weights stored in another are cast in the graph
    cache_len: int  # Smax
    slices_cache: bool = False  # see `attention_function`: for a runtime that reads all keys that a mask covers
    weights_location: str = WEIGHTS_FILE  # of the checkpoint's file, relative to the graph's


def step_model(checkpoint: Checkpoint, options: GraphOptions) -> ModelProto:
    """Write the graph of one step of a checkpoint's model.

    Raises:
        EnginewrightError: the checkpoint's weights cannot be read.
    """
    return _StepGraph(checkpoint, options).model()


class _StepGraph:
    """Nodes and initializers on their way to a model."""

    def __init__(self, checkpoint: Checkpoint, options: GraphOptions) -> None:
        self.spec = checkpoint.spec
        self._options = options
        self._stored = stored_tensors(checkpoint.path / WEIGHTS_FILE)
        self._type = ONNX_TYPES[options.dtype]
        self._wide = TensorProto.DOUBLE if options.dtype == "float64" else TensorProto.FLOAT
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}

    def model(self) -> ModelProto:
        spec, options = self.spec, self._options
        self._rope_tables()
        self._shapes()
        hidden = self._embed()
        for layer in range(spec.num_layers):
            hidden = self._layer(layer, hidden)
        self._head(hidden)
        caches = list(names.cache_names(spec.num_layers))
        graph = helper.make_graph(
            self._nodes, "step", [*self._step_inputs(), *map(self._cache, caches)],
            [self._value(names.LOGITS, self._wide, ["emits", spec.vocab_size]),
             self._value(names.HIDDEN, self._wide, ["emits", spec.hidden_size]),
             *(self._cache(names.NEW + name) for name in caches)],
            list(self._initializers.values()),
        )  # fmt: skip
        is_double = options.dtype == "float64"
        functions = [
            rope_kv_write_function(
                spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.norm_eps, spec.qk_norm, is_double
            ),
            attention_function(spec.num_heads, spec.head_dim, options.slices_cache, is_double),
        ]
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
        return helper.make_model(
            graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION, producer_name="enginewright"
        )

    def _embed(self) -> str:
        """Residual stream (B * S, H), wide."""
        self._nodes.append(integers("one_row", [-1]))
        flat = self._add("Reshape", [names.TOKEN_IDS, "one_row"], "flat_token_ids")
        rows = self._add("Gather", [self._stored_weight(EMBEDDING), flat], "embedded")
        return self._cast(rows, self._stored[EMBEDDING].onnx_type, self._wide)

    def _shapes(self) -> None:
        """Constants and shapes that every layer reshapes to: `qkv_shape` (B, S, -1) and `flat_heads` (-1, N D)."""
        self._nodes += [integers("all_heads", [-1]), integers("flat_heads", [-1, self.spec.q_size])]
        shape = self._add("Shape", [names.TOKEN_IDS], "dense_shape")
        self._add("Concat", [shape, "all_heads"], "qkv_shape", axis=0)

    def _layer(self, layer: int, hidden: str) -> str:
        spec, prefix = self.spec, layer_prefix(layer)
        normed = self._norm(hidden, prefix + "input_layernorm.weight")
        bias = prefix + "attention.qkv.bias" if spec.qkv_bias else ""
        qkv = self._linear(normed, prefix + "attention.qkv.weight", bias)
        context = self._attend(layer, self._add("Reshape", [qkv, "qkv_shape"], f"{prefix}qkv"))
        if layer == spec.num_layers - 1:  # past the last keys and values, only rows that get logits matter
            hidden = self._add("Gather", [hidden, names.LOGIT_ROWS], "emitting_hidden")
            context = self._add("Gather", [context, names.LOGIT_ROWS], "emitting_context")
        attended = self._linear(context, prefix + "attention.dense.weight")
        hidden = self._add_to(hidden, attended)
        normed = self._norm(hidden, prefix + "post_layernorm.weight")
        gate = self._linear(normed, prefix + "mlp.fc.weight")
        activated = self._add("Mul", [gate, self._add("Sigmoid", [gate])])
        gated = self._add("Mul", [activated, self._linear(normed, prefix + "mlp.gate.weight")])
        return self._add_to(hidden, self._linear(gated, prefix + "mlp.proj.weight"))

    def _attend(self, layer: int, qkv: str) -> str:
        """(B, S, (N + 2 N_kv) D) to (B * S, N D)."""
        spec, prefix = self.spec, layer_prefix(layer)
        sizes = {"num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads, "head_dim": spec.head_dim}
        caches = [f"k_cache_{layer}", f"v_cache_{layer}"]
        q, new = f"{prefix}q", [names.NEW + name for name in caches]
        norms = [self._weight(f"{prefix}attention.{name}_layernorm.weight") for name in "qk" if spec.qk_norm]
        inputs = [qkv, "rope_cos", "rope_sin", names.POSITION_IDS, names.WRITE_STARTS, *caches, *norms]
        self._nodes.append(rope_kv_write_node(inputs, [q, *new], **sizes, eps=spec.norm_eps))
        self._nodes.append(attention_node(q, new[0], new[1], names.ATTENTION_MASK, f"{prefix}context", **sizes))
        return self._add("Reshape", [f"{prefix}context", "flat_heads"], f"{prefix}flat_context")

    def _head(self, hidden: str) -> None:
        """The graph's outputs from the rows that get logits."""
        weight = self._cast(self._stored_weight(FINAL_NORM), self._stored[FINAL_NORM].onnx_type, self._wide)
        self._add("RMSNormalization", [hidden, weight], names.HIDDEN, axis=-1, epsilon=self.spec.norm_eps)
        rows = self._cast(names.HIDDEN, self._wide, self._type)
        logits = self._linear(rows, EMBEDDING if self.spec.tied_head else LM_HEAD)
        self._add("Cast", [logits], names.LOGITS, to=self._wide)

    def _norm(self, hidden: str, weight: str) -> str:
        """Norm of wide rows, in the graph's dtype."""
        wide = self._cast(self._stored_weight(weight), self._stored[weight].onnx_type, self._wide)
        normed = self._add("RMSNormalization", [hidden, wide], axis=-1, epsilon=self.spec.norm_eps)
        return self._cast(normed, self._wide, self._type)

    def _linear(self, rows: str, weight: str, bias: str = "") -> str:
        inputs = [rows, self._weight(weight), *([self._weight(bias)] if bias else [])]
        return self._add("Gemm", inputs, transB=1)

    def _add_to(self, hidden: str, sublayer: str) -> str:
        return self._add("Add", [hidden, self._cast(sublayer, self._type, self._wide)])

    def _weight(self, name: str) -> str:
        """A weight in the graph's dtype."""
        return self._cast(self._stored_weight(name), self._stored[name].onnx_type, self._type)

    def _stored_weight(self, name: str) -> str:
        if name not in self._initializers:
            self._initializers[name] = external_initializer(name, self._stored[name], self._options.weights_location)
        return name

    def _cast(self, value: str, have: int, want: int) -> str:
        if have == want:
            return value
        out = f"{value}_as_{TensorProto.DataType.Name(want).lower()}"
        if not any(out in node.output for node in self._nodes):
            self._add("Cast", [value], out, to=want)
        return out

    def _add(self, kind: str, inputs: list[str], out: str = "", **attributes: Any) -> str:
        """Append a node with one output; without a name it gets one by its place."""
        out = out or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [out], name=f"{out}_{kind}", **attributes))
        return out

    def _rope_tables(self) -> None:
        """Rows for every position that a token can have: those past the longest text are of trees at its end."""
        half = self.spec.head_dim // 2
        table = rope_table(self.spec, self._options.cache_len, getattr(torch, self._options.dtype))
        for name, values in (("rope_cos", table.cos[:, :half]), ("rope_sin", table.sin[:, half:])):
            self._initializers[name] = _initializer(name, values, self._type)

    def _step_inputs(self) -> list[ValueInfoProto]:
        keys = "keys" if self._options.slices_cache else self._options.cache_len
        return [
            self._value(names.TOKEN_IDS, TensorProto.INT64, ["batch", "rows"]),
            self._value(names.POSITION_IDS, TensorProto.INT64, ["batch", "rows"]),
            self._value(names.WRITE_STARTS, TensorProto.INT64, ["batch"]),
            self._value(names.ATTENTION_MASK, TensorProto.BOOL, ["batch", 1, "rows", keys]),
            self._value(names.LOGIT_ROWS, TensorProto.INT64, ["emits"]),
        ]

    def _cache(self, name: str) -> ValueInfoProto:
        spec = self.spec
        return self._value(name, self._type, ["batch", spec.num_kv_heads, self._options.cache_len, spec.head_dim])

    @staticmethod
    def _value(name: str, onnx_type: int, shape: list[str | int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx_type, shape)


def _initializer(name: str, values: torch.Tensor, onnx_type: int) -> TensorProto:
    """An initializer whose bytes are in the graph's own file."""
    raw = values.contiguous().view(torch.uint8).numpy().tobytes()
    return helper.make_tensor(name, onnx_type, list(values.shape), raw, raw=True)


def write_step_model(checkpoint: Checkpoint, options: GraphOptions, folder: Path) -> Path:
    """Write `model.onnx` and return its path; the weights' file is not copied."""
    path = folder / names.GRAPH_FILE
    path.write_bytes(step_model(checkpoint, options).SerializeToString(deterministic=True))
    return path
