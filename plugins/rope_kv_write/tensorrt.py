"""Rotary positions and the cache write as a TensorRT plugin: the launch of rope_kv_write_tensorrt.cu, and its
registration. The contract is onnx.py's; the new caches are the old ones' memory.
"""

from typing import Any

from plugins.rope_kv_write.cuda import HEAD_DIMS
from plugins.tensorrt_plugins import (
    NAMESPACE,
    PluginLaunch,
    Shape,
    as_tensorrt,
    ceil_div,
    element_of,
    float_bits,
    plugin_source,
)

NAME = "rope_kv_write"
NORMS_NAME = "rope_kv_write_norms"  # a plugin's inputs are fixed: models with norms per head have one of their own
FILE = "rope_kv_write/rope_kv_write_tensorrt.cu"
_THREADS = 128


def rope_kv_write_launch(
    qkv: Shape, k_cache: Shape, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, element: str,
    has_norms: bool,
) -> PluginLaunch:  # fmt: skip
    """Describe the launch.

    Args:
        qkv: (B, S, (N + 2 N_kv) D).
        k_cache: (B, N_kv, Smax, D).
        element: bfloat16 or float16.
        has_norms: q_norm and k_norm are among the inputs.

    Raises:
        ValueError: a head_dim without a kernel.
    """
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"the rope_kv_write plugin has kernels for head_dim {HEAD_DIMS}, not {head_dim}")
    batch, rows, _ = qkv
    lanes = 1 << (head_dim // 16 - 1).bit_length()
    heads = num_heads + 2 * num_kv_heads
    return PluginLaunch(
        entry="rope_kv_write_norms_tensorrt_kernel" if has_norms else "rope_kv_write_tensorrt_kernel",
        source=plugin_source(FILE, element, head_dim),
        grid=(ceil_div(batch * rows * heads, _THREADS // lanes), 1, 1),
        block=_THREADS,
        shared_bytes=0,
        scalars=(batch, rows, num_heads, num_kv_heads, k_cache[2], float_bits(eps)),
    )


def register_rope_kv_write() -> None:
    """Tell TensorRT of `enginewright::rope_kv_write` and `rope_kv_write_norms`, once per process."""
    import tensorrt.plugin as trtp

    def outputs_of(qkv: Any, k_cache: Any, v_cache: Any, num_heads: int, head_dim: int) -> tuple[Any, Any, Any]:
        q = qkv.like()
        batch, rows, _ = qkv.shape_expr
        q.shape_expr = trtp.ShapeExprs.from_tuple((batch, num_heads, rows, head_dim))
        return q, k_cache.aliased(), v_cache.aliased()

    @trtp.register(f"{NAMESPACE}::{NAME}")  # type: ignore[untyped-decorator]
    def describe(
        qkv: trtp.TensorDesc,
        cos: trtp.TensorDesc,
        sin: trtp.TensorDesc,
        position_ids: trtp.TensorDesc,
        write_starts: trtp.TensorDesc,
        k_cache: trtp.TensorDesc,
        v_cache: trtp.TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]:
        return outputs_of(qkv, k_cache, v_cache, num_heads, head_dim)

    @trtp.aot_impl(f"{NAMESPACE}::{NAME}")  # type: ignore[untyped-decorator]
    def implement(
        qkv: trtp.TensorDesc,
        cos: trtp.TensorDesc,
        sin: trtp.TensorDesc,
        position_ids: trtp.TensorDesc,
        write_starts: trtp.TensorDesc,
        k_cache: trtp.TensorDesc,
        v_cache: trtp.TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
        launch = rope_kv_write_launch(
            qkv.shape_expr, k_cache.shape_expr, num_heads, num_kv_heads, head_dim, eps, element_of(qkv.dtype), False
        )
        return as_tensorrt(launch)

    @trtp.register(f"{NAMESPACE}::{NORMS_NAME}")  # type: ignore[untyped-decorator]
    def describe_norms(
        qkv: trtp.TensorDesc,
        cos: trtp.TensorDesc,
        sin: trtp.TensorDesc,
        position_ids: trtp.TensorDesc,
        write_starts: trtp.TensorDesc,
        k_cache: trtp.TensorDesc,
        v_cache: trtp.TensorDesc,
        q_norm: trtp.TensorDesc,
        k_norm: trtp.TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]:
        return outputs_of(qkv, k_cache, v_cache, num_heads, head_dim)

    @trtp.aot_impl(f"{NAMESPACE}::{NORMS_NAME}")  # type: ignore[untyped-decorator]
    def implement_norms(
        qkv: trtp.TensorDesc,
        cos: trtp.TensorDesc,
        sin: trtp.TensorDesc,
        position_ids: trtp.TensorDesc,
        write_starts: trtp.TensorDesc,
        k_cache: trtp.TensorDesc,
        v_cache: trtp.TensorDesc,
        q_norm: trtp.TensorDesc,
        k_norm: trtp.TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
        launch = rope_kv_write_launch(
            qkv.shape_expr, k_cache.shape_expr, num_heads, num_kv_heads, head_dim, eps, element_of(qkv.dtype), True
        )
        return as_tensorrt(launch)
