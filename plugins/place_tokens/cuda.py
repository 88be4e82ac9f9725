"""The tokens of a step on NVIDIA GPUs: checks, and the launch."""

import ctypes

import torch

from plugins.cuda.run import require_integers, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("place_tokens", "place_tokens/place_tokens.cu")
_THREADS = 128
_POINTERS = (
    "slots", "query_starts", "starts", "is_drawn", "known_ids", "num_tokens", "history", "tree_ids", "tree_depths",
    "turn", "token_ids", "positions", "cache_positions", "context_lens", "roots",
)  # fmt: skip


class PlaceTokensParams(ctypes.Structure):
    """Mirror of the struct in place_tokens.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("history_len", ctypes.c_int64),
        ("num_nodes", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    ]


def place_tokens_cuda(*tensors: torch.Tensor | None) -> None:
    """See `plugins.place_tokens.place_tokens`."""
    given = dict(zip(_POINTERS, tensors, strict=True))
    require_integers("place_tokens", **{name: tensor for name, tensor in given.items() if tensor is not None})
    slots, history, tree_ids = given["slots"], given["history"], given["tree_ids"]
    assert slots is not None
    assert history is not None
    if not len(slots):
        return
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    params = PlaceTokensParams(*pointers, history.shape[1], 0 if tree_ids is None else tree_ids.shape[1], 0)
    run_kernel(SOURCE, "place_tokens_kernel", len(slots), _THREADS, params)
