"""Mirrors of the structs in params.cuh."""

import ctypes

from plugins.cuda.tensor_map import MAP_BYTES

MODES = ("qkv", "residual", "gated", "plain", "logits")
LINEAR_MODES = {"qkv": "qkv", "dense": "residual", "gate_up": "gated", "down": "residual", "head": "logits"}


class LayerLinearParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "squares", "q_norm", "k_norm")),
        *((name, ctypes.c_void_p) for name in ("scales", "hidden", "norm")),
        *((name, ctypes.c_void_p) for name in ("squares_out", "scales_out", "y")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "kv_rows", "k_cache", "v_cache")),
        *((name, ctypes.c_int32) for name in ("rows", "columns", "outputs", "mode", "parts", "num_squares")),
        *((name, ctypes.c_int32) for name in ("row_warps", "tiles", "num_heads", "num_kv_heads", "head_dim")),
        ("block_size", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("trace", ctypes.c_int32),
    )


class WideLinearParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint8 * MAP_BYTES) for name in ("weight", "x")),
        ("layer", LayerLinearParams),
        ("stages", ctypes.c_int32),
        ("unused", ctypes.c_int32 * 15),
    )


class RowsParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("token_ids", "cache_positions", "query_starts", "block_tables")),
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "hidden", "scaled", "squares")),
        *((name, ctypes.c_void_p) for name in ("scales", "kv_rows", "positions", "cos", "sin", "row_cos", "row_sin")),
        *((name, ctypes.c_int32) for name in ("rows", "hidden_size", "num_requests", "max_blocks")),
        *((name, ctypes.c_int32) for name in ("num_kv_heads", "block_size", "head_dim")),
        ("eps", ctypes.c_float),
    )
