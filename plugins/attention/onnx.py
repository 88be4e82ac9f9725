"""The attention op in an ONNX graph: a node of our domain, and the function of standard ops that it stands for.

    attention(q, k_cache, v_cache, mask) -> context

q: (B, N, S, D); k_cache, v_cache: (B, N_kv, Smax, D), holding this step's keys; mask: (B, 1, S, M) bool, true where a
query sees a key, M <= Smax; context: (B, S, N * D). A mask says all that chains, trees and sliding windows need: what
is_causal means differs between runtimes.
"""

import numpy
from onnx import FunctionProto, NodeProto, helper, numpy_helper

from plugins.onnx_functions import DOMAIN, function, integers

NAME = "attention"
ATTRIBUTES = ("num_heads", "num_kv_heads", "head_dim", "scale")


def attention_node(
    q: str, k_cache: str, v_cache: str, mask: str, context: str, *, num_heads: int, num_kv_heads: int, head_dim: int
) -> NodeProto:
    return helper.make_node(
        NAME, [q, k_cache, v_cache, mask], [context], domain=DOMAIN, name=f"{context}_{NAME}", num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, scale=head_dim**-0.5,
    )  # fmt: skip


def attention_function(num_heads: int, head_dim: int, slices_cache: bool, is_double: bool = False) -> FunctionProto:
    """The body of `attention_node`.

    slices_cache: M may be below Smax, and keys past it are not read; otherwise M is Smax.
    is_double: scale the queries beforehand, as the standard op's scale is a float32.
    """
    nodes = [integers("flat_shape", [0, 0, num_heads * head_dim])]
    keys, values = ("keys", "values") if slices_cache else ("k_cache", "v_cache")
    if slices_cache:
        nodes += [integers("zero", [0]), integers("key_axis", [2]),
                  helper.make_node("Shape", ["mask"], ["num_keys"], start=3, end=4)]  # fmt: skip
        nodes += [helper.make_node("Slice", [cache, "zero", "num_keys", "key_axis"], [name])
                  for cache, name in (("k_cache", keys), ("v_cache", values))]  # fmt: skip
    queries, scale = "q", head_dim**-0.5
    if is_double:
        value = numpy_helper.from_array(numpy.array(scale, dtype=numpy.float64))
        nodes += [helper.make_node("Constant", [], ["scale"], value=value),
                  helper.make_node("Mul", [queries, "scale"], ["scaled"])]  # fmt: skip
        queries, scale = "scaled", 1.0
    nodes += [
        helper.make_node("Attention", [queries, keys, values, "mask"], ["heads"], scale=scale),
        helper.make_node("Transpose", ["heads"], ["by_row"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["by_row", "flat_shape"], ["context"]),
    ]
    return function(NAME, ["q", "k_cache", "v_cache", "mask"], ["context"], nodes, ATTRIBUTES)
