"""The rope_kv_write op in an ONNX graph: a node of our domain, and the function of standard ops that it stands for.

    rope_kv_write(qkv, cos, sin, position_ids, write_starts, k_cache, v_cache[, q_norm, k_norm])
        -> (q, new_k_cache, new_v_cache)

qkv: (B, S, (N + 2 N_kv) D); cos, sin: (positions, D / 2), no half repeated and none negated; position_ids: (B, S);
write_starts: (B,), the cache row of each request's first new token; k_cache, v_cache: (B, N_kv, Smax, D);
q: (B, N, S, D). The new caches are the old ones with S rows written, in place where a runtime binds both to one buffer;
write_starts + S <= Smax. q_norm, k_norm: (D,), for models that have them.
"""

from onnx import FunctionProto, NodeProto, helper

from plugins.onnx_functions import DOMAIN, function, integers

NAME = "rope_kv_write"
ATTRIBUTES = ("num_heads", "num_kv_heads", "head_dim", "eps")
INPUTS = ("qkv", "cos", "sin", "position_ids", "write_starts", "k_cache", "v_cache")
NORMS = ("q_norm", "k_norm")
OUTPUTS = ("q", "new_k_cache", "new_v_cache")


def rope_kv_write_node(
    inputs: list[str], outputs: list[str], *, num_heads: int, num_kv_heads: int, head_dim: int, eps: float
) -> NodeProto:
    """`inputs` in the order of INPUTS, with those of NORMS where the model has them; `outputs` in that of OUTPUTS."""
    return helper.make_node(
        NAME, inputs, outputs, domain=DOMAIN, name=f"{outputs[0]}_{NAME}", num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, eps=eps,
    )  # fmt: skip


def rope_kv_write_function(
    num_heads: int, num_kv_heads: int, head_dim: int, eps: float, has_norms: bool, is_double: bool = False
) -> FunctionProto:
    """The body of `rope_kv_write_node`.

    is_double: write the rotation out, as the standard op does not take float64.
    """
    q_size, kv_size = num_heads * head_dim, num_kv_heads * head_dim
    nodes = [
        integers("sizes", [q_size, kv_size, kv_size]),
        integers("q_shape", [0, 0, num_heads, head_dim]),
        integers("kv_shape", [0, 0, num_kv_heads, head_dim]),
        helper.make_node("Split", ["qkv", "sizes"], ["q_flat", "k_flat", "v_flat"], axis=2),
        *_by_head("v", "kv_shape", "v_heads"),
    ]
    for name, shape, norm, out in (("q", "q_shape", "q_norm", "q"), ("k", "kv_shape", "k_norm", "k_rotated")):
        nodes += _by_head(name, shape, f"{name}_heads", norm if has_norms else "", eps)
        nodes += _rotate(f"{name}_heads", out, is_double)
    nodes += [
        helper.make_node("TensorScatter", ["k_cache", "k_rotated", "write_starts"], ["new_k_cache"], axis=-2),
        helper.make_node("TensorScatter", ["v_cache", "v_heads", "write_starts"], ["new_v_cache"], axis=-2),
    ]
    inputs = [*INPUTS, *NORMS] if has_norms else INPUTS
    return function(NAME, inputs, OUTPUTS, nodes, ATTRIBUTES)


def _by_head(name: str, shape: str, out: str, norm: str = "", eps: float = 0.0) -> list[NodeProto]:
    """(B, S, heads * D) to (B, heads, S, D), each head normed where there is a norm."""
    nodes = [helper.make_node("Reshape", [f"{name}_flat", shape], [f"{name}_split"])]
    split = f"{name}_split"
    if norm:
        nodes.append(helper.make_node("RMSNormalization", [split, norm], [f"{name}_normed"], axis=-1, epsilon=eps))
        split = f"{name}_normed"
    return [*nodes, helper.make_node("Transpose", [split], [out], perm=[0, 2, 1, 3])]


def _rotate(heads: str, out: str, is_double: bool) -> list[NodeProto]:
    """Dimension i turns with i + D / 2."""
    if not is_double:
        return [helper.make_node("RotaryEmbedding", [heads, "cos", "sin", "position_ids"], [out])]
    first, second, cos, sin = (f"{heads}_{part}" for part in ("first", "second", "cos", "sin"))
    nodes = [integers(f"{heads}_head_axis", [1]),
             helper.make_node("Split", [heads], [first, second], axis=3, num_outputs=2)]  # fmt: skip
    for table, rows in (("cos", cos), ("sin", sin)):
        nodes += [helper.make_node("Gather", [table, "position_ids"], [f"{rows}_rows"]),
                  helper.make_node("Unsqueeze", [f"{rows}_rows", f"{heads}_head_axis"], [rows])]  # fmt: skip
    terms = {f"{heads}_{name}": pair for name, pair in
             {"fc": (first, cos), "ss": (second, sin), "sc": (second, cos), "fs": (first, sin)}.items()}  # fmt: skip
    nodes += [helper.make_node("Mul", list(pair), [name]) for name, pair in terms.items()]
    return [
        *nodes,
        helper.make_node("Sub", [f"{heads}_fc", f"{heads}_ss"], [f"{heads}_low"]),
        helper.make_node("Add", [f"{heads}_sc", f"{heads}_fs"], [f"{heads}_high"]),
        helper.make_node("Concat", [f"{heads}_low", f"{heads}_high"], [out], axis=3),
    ]
