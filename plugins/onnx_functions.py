"""Our ops as ONNX functions: their domain, and how one is put together. Imports onnx; what runs an engine does not.

A function's body is written for one model: its sizes are constants. The node that calls it carries them as attributes
too, for a runtime that has a plugin of the same name and takes that in place of the body.
"""

from collections.abc import Sequence

import numpy
from onnx import FunctionProto, NodeProto, helper, numpy_helper

DOMAIN = "enginewright"
DOMAIN_VERSION = 1
OPSET = 24  # the first with TensorScatter


def function(
    name: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[NodeProto], attributes: Sequence[str]
) -> FunctionProto:
    """A function of standard ops in our domain; `attributes` are those that its nodes carry."""
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, list(inputs), list(outputs), list(nodes), opsets, list(attributes))


def integers(name: str, values: Sequence[int]) -> NodeProto:
    """A constant (n,) int64."""
    value = numpy_helper.from_array(numpy.array(values, dtype=numpy.int64), name)
    return helper.make_node("Constant", [], [name], value=value)
