"""Attention as a TensorRT plugin: the launch of attention_tensorrt.cu, its registration. onnx.py has the contract.

One launch and no workspace: contexts are not split, so one request with few K/V heads keeps few of a GPU's processors
busy.
"""

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

NAME = "attention"
FILE = "attention/attention_tensorrt.cu"
HEAD_DIMS = (64, 96, 128, 256)
MASK_ALIGNMENT = 16  # keys: rows of the mask are read 16 bytes at a time
_CHUNK, _STAGES, _WARP_ROWS = 16, 2, 16


def attention_launch(
    q: Shape, k_cache: Shape, num_heads: int, num_kv_heads: int, head_dim: int, scale: float, element: str
) -> PluginLaunch:
    """Describe the launch.

    Args:
        q: (B, N, S, D).
        k_cache: (B, N_kv, Smax, D).
        element: bfloat16 or float16.

    Raises:
        ValueError: a head_dim without a kernel.
    """
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"the attention plugin has kernels for head_dim {HEAD_DIMS}, not {head_dim}")
    key_warps = 4 if head_dim <= 64 else 2 if head_dim <= 128 else 1
    row_warps = 2 if head_dim <= 128 else 1
    tile = row_warps * _WARP_ROWS
    batch, _, rows, _ = q
    group = num_heads // num_kv_heads
    return PluginLaunch(
        entry="attention_tensorrt_kernel",
        source=plugin_source(FILE, element, head_dim),
        grid=(ceil_div(rows * group, tile), num_kv_heads, batch),
        block=32 * key_warps * row_warps,
        shared_bytes=_shared_bytes(head_dim, tile, key_warps),
        scalars=(rows, num_heads, num_kv_heads, k_cache[2], float_bits(scale)),
    )


def _shared_bytes(head_dim: int, tile: int, key_warps: int) -> int:
    """SHARED_BYTES of AttentionConfig."""
    row_bytes = 2 * head_dim + 16
    ring = key_warps * _STAGES * 2 * _CHUNK * row_bytes
    if key_warps == 1:
        return tile * row_bytes + ring
    columns = head_dim if tile <= 16 else 32
    merge = key_warps * tile * (columns + 8 + 2) * 4
    return tile * row_bytes + max(ring, merge) + 16


def register_attention() -> None:
    """Tell TensorRT of the plugin `enginewright::attention`, once per process."""
    import tensorrt.plugin as trtp

    @trtp.register(f"{NAMESPACE}::{NAME}")  # type: ignore[untyped-decorator]
    def describe(
        q: trtp.TensorDesc,
        k_cache: trtp.TensorDesc,
        v_cache: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
    ) -> trtp.TensorDesc:
        context = q.like()
        batch, _, rows, _ = q.shape_expr
        context.shape_expr = trtp.ShapeExprs.from_tuple((batch, rows, num_heads * head_dim))
        return context

    @trtp.aot_impl(f"{NAMESPACE}::{NAME}")  # type: ignore[untyped-decorator]
    def implement(
        q: trtp.TensorDesc,
        k_cache: trtp.TensorDesc,
        v_cache: trtp.TensorDesc,
        mask: trtp.TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
        launch = attention_launch(
            q.shape_expr, k_cache.shape_expr, num_heads, num_kv_heads, head_dim, scale, element_of(q.dtype)
        )
        return as_tensorrt(launch)
