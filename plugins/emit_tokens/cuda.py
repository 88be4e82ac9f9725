"""What a step leaves, on NVIDIA GPUs: checks, and the launch."""

import ctypes

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import require_contiguous, require_integers, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("emit_tokens", "emit_tokens/emit_tokens.cu")
_THREADS = 256
_POINTERS = (
    "slots", "roots", "first_rows", "token_ids", "nodes", "counts", "hidden", "num_tokens", "history", "last_hidden",
)  # fmt: skip


class EmitTokensParams(ctypes.Structure):
    """Mirror of the struct in emit_tokens.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("history_len", ctypes.c_int64),
        ("hidden_words", ctypes.c_int32),
        ("most_tokens", ctypes.c_int32),
    ]


def emit_tokens_cuda(*tensors: torch.Tensor) -> None:
    """See `plugins.emit_tokens.emit_tokens`."""
    given = dict(zip(_POINTERS, tensors, strict=True))
    hidden, last_hidden = given["hidden"], given["last_hidden"]
    states = {"hidden": hidden, "last_hidden": last_hidden}
    require_integers("emit_tokens", **{name: tensor for name, tensor in given.items() if name not in states})
    require_contiguous("emit_tokens", **states)
    row_bytes = hidden.shape[1] * hidden.itemsize
    if hidden.dtype != last_hidden.dtype or row_bytes % 4:
        raise KernelError(
            f"hidden states are {hidden.dtype} of {row_bytes} bytes a row, kept as {last_hidden.dtype}; they must have "
            "one dtype and rows of whole 4-byte words"
        )
    num_rows, most_tokens = given["token_ids"].shape
    if not num_rows:
        return
    pointers = [tensor.data_ptr() for tensor in tensors]
    params = EmitTokensParams(*pointers, given["history"].shape[1], row_bytes // 4, most_tokens)
    run_kernel(SOURCE, "emit_tokens_kernel", num_rows, _THREADS, params)
