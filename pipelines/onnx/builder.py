"""Nodes and initializers on their way to a graph. Knows no model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from pipelines.onnx.external import ONNX_TYPES, Stored, external_initializer
from plugins.onnx_functions import DOMAIN, DOMAIN_VERSION, OPSET, integers

IR_VERSION = 11  # what TensorRT-RTX 1.7 reads; opset 24 needs no newer one


class GraphBuilder:
    """A graph that computes in one dtype, over weights that stay in their files.

    What is added is known by the name of its output.
    """

    def __init__(self, dtype: str) -> None:
        """dtype: of all that is no residual stream, norm, logit or index; those are `wide`."""
        self.type = ONNX_TYPES[dtype]
        self.wide = TensorProto.DOUBLE if dtype == "float64" else TensorProto.FLOAT
        self._nodes: list[NodeProto] = []
        self._stored: dict[str, tuple[Stored, str]] = {}
        self._initializers: dict[str, TensorProto] = {}
        self._known: set[str] = set()

    def store(self, tensors: Mapping[str, Stored], location: str) -> None:
        """Make the tensors of a file known; those that a node takes become initializers."""
        self._stored |= {name: (stored, location) for name, stored in tensors.items()}

    def add(self, kind: str, inputs: Sequence[str], out: str = "", **attributes: Any) -> str:
        """Append a node of a standard op with one output; without a name it gets one by its place."""
        out = out or f"{kind.lower()}_{len(self._nodes)}"
        self.append(helper.make_node(kind, list(inputs), [out], name=f"{out}_{kind}", **attributes))
        return out

    def append(self, node: NodeProto) -> None:
        self._nodes.append(node)
        self._known.update(node.output)

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A constant (n,) int64."""
        self.append(integers(name, values))
        return name

    def table(self, name: str, values: torch.Tensor) -> None:
        """An initializer in the graph's dtype and in its own file."""
        raw = values.contiguous().view(torch.uint8).numpy().tobytes()
        self._initializers[name] = helper.make_tensor(name, self.type, list(values.shape), raw, raw=True)

    def cast(self, value: str, have: int, want: int) -> str:
        """A value in another dtype, computed once however often it is asked for."""
        if have == want:
            return value
        out = f"{value}_as_{TensorProto.DataType.Name(want).lower()}"
        return out if out in self._known else self.add("Cast", [value], out, to=want)

    def stored(self, name: str) -> str:
        """A tensor as its file has it."""
        if name not in self._initializers:
            stored, location = self._stored[name]
            self._initializers[name] = external_initializer(name, stored, location)
        return name

    def stored_type(self, name: str) -> int:
        return self._stored[name][0].onnx_type

    def weight(self, name: str, wide: bool = False) -> str:
        """A tensor in the graph's dtype, or wide."""
        return self.cast(self.stored(name), self.stored_type(name), self.wide if wide else self.type)

    def linear(self, rows: str, weight: str, bias: str = "") -> str:
        """x W^T + b with a stored weight (out, in): (rows, in) to (rows, out)."""
        return self.add("Gemm", [rows, self.weight(weight), *([self.weight(bias)] if bias else [])], transB=1)

    def silu(self, value: str) -> str:
        return self.add("Mul", [value, self.add("Sigmoid", [value])])

    def model(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto],
        functions: Sequence[FunctionProto] = (),
    ) -> ModelProto:  # fmt: skip
        graph = helper.make_graph(self._nodes, name, list(inputs), list(outputs), list(self._initializers.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(DOMAIN, DOMAIN_VERSION)] if functions else []
        return helper.make_model(
            graph, opset_imports=opsets, functions=list(functions), ir_version=IR_VERSION, producer_name="enginewright"
        )


def value(name: str, onnx_type: int, shape: Sequence[str | int]) -> ValueInfoProto:
    """A graph's input or output."""
    return helper.make_tensor_value_info(name, onnx_type, list(shape))
