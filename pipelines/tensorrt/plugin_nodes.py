"""A step's graph for TensorRT with our plugins: the nodes of our domain are the plugins of those names."""

from onnx import ModelProto, NodeProto, helper

from plugins.attention.tensorrt import HEAD_DIMS
from plugins.onnx_functions import DOMAIN
from plugins.rope_kv_write.onnx import INPUTS
from plugins.rope_kv_write.onnx import NAME as ROPE_KV_WRITE
from plugins.rope_kv_write.tensorrt import NORMS_NAME
from plugins.tensorrt_plugins import NAMESPACE
from runtime.errors import EnginewrightError


def with_plugins(model: ModelProto, head_dim: int) -> ModelProto:
    """Return the graph without functions: a parser that knows no plugin of a node's name then fails, and says so.

    Raises:
        EnginewrightError: a head_dim that the plugins have no kernels for.
    """
    if head_dim not in HEAD_DIMS:
        raise EnginewrightError(
            f"target.tensorrt.attention=plugin takes head_dim {', '.join(map(str, HEAD_DIMS))}; this model's is "
            f"{head_dim}; write target.tensorrt.attention=native"
        )
    made = ModelProto()
    made.CopyFrom(model)
    del made.functions[:]
    for node in made.graph.node:
        if node.domain == DOMAIN:
            _name_plugin(node)
    return made


def _name_plugin(node: NodeProto) -> None:
    """What TensorRT's parser looks for: the plugin's namespace, and that its ahead-of-time form is meant."""
    if node.op_type == ROPE_KV_WRITE and len(node.input) > len(INPUTS):
        node.op_type = NORMS_NAME
    node.attribute.append(helper.make_attribute("plugin_namespace", NAMESPACE))
    node.attribute.append(helper.make_attribute("aot", 1))
