"""The weights of a Hugging Face folder as pieces of the canonical checkpoint's file."""

from collections.abc import Mapping

from pipelines.export.hf import hf_shapes
from pipelines.tensorrt_llm.pieces import NewTensor, StoredTensor
from runtime.formats.checkpoint import Checkpoint, tensor_shapes


def hf_pieces(checkpoint: Checkpoint, stored: Mapping[str, StoredTensor]) -> dict[str, NewTensor]:
    """transformers' tensors by name, in the order of the checkpoint.

    Each is some rows of a tensor of ours, and they come in its order: Q, K and V one after the other, the rest whole.
    """
    sources = (stored[name] for name in tensor_shapes(checkpoint.spec))
    tensors: dict[str, NewTensor] = {}
    current, row = next(sources), 0
    for name, shape in hf_shapes(checkpoint).items():
        if row == current.shape[0]:
            current, row = next(sources), 0
        tensors[name] = NewTensor(shape, (current.rows(row, row + shape[0]),))
        row += shape[0]
    return tensors
