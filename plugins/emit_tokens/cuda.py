"""What a step leaves, on NVIDIA GPUs: checks, and the launch."""

import ctypes

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import require_contiguous, require_integers, require_shape, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("emit_tokens", "emit_tokens/emit_tokens.cu")
_THREADS = 256
_POINTERS = (
    "slots", "roots", "first_rows", "token_ids", "nodes", "counts", "hidden", "num_tokens", "history", "last_hidden",
)  # fmt: skip
_REPORT = ("tree_ids", "turn", "results")  # each may be missing


class EmitTokensParams(ctypes.Structure):
    """Mirror of the struct in emit_tokens.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_POINTERS, *_REPORT)),
        ("history_len", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("hidden_words", "most_tokens", "num_nodes", "turns")),
        *((name, ctypes.c_int32) for name in ("idle_slot", "unused")),
    ]


def emit_tokens_cuda(*arguments: torch.Tensor | int | None) -> None:
    """See `plugins.emit_tokens.emit_tokens`.

    Raises:
        KernelError: shapes, dtypes or strides that the kernel does not take.
    """
    *tensors, idle_slot = arguments
    given = {
        name: tensor
        for name, tensor in zip((*_POINTERS, *_REPORT), tensors, strict=True)
        if isinstance(tensor, torch.Tensor)
    }
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
    turns = 0
    if "results" in given:
        turns = len(given["results"])
        require_shape("emit_tokens", (turns, num_rows, 2 + most_tokens), torch.int64, results=given["results"])
        require_shape("emit_tokens", (1,), torch.int64, turn=given["turn"])
    if not num_rows:
        return
    params = EmitTokensParams(
        **{name: tensor.data_ptr() for name, tensor in given.items()}, history_len=given["history"].shape[1],
        hidden_words=row_bytes // 4, most_tokens=most_tokens, turns=turns, idle_slot=idle_slot,
        num_nodes=given["tree_ids"].shape[1] if "tree_ids" in given else 0,
    )  # fmt: skip
    run_kernel(SOURCE, "emit_tokens_kernel", num_rows, _THREADS, params)
