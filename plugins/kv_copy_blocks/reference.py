"""Block copies, one layer and one block at a time: the oracle."""

import torch


def kv_copy_blocks_reference(storage: torch.Tensor, src: list[int], dst: list[int]) -> torch.Tensor:
    """Return `storage` as the op leaves it; the argument itself is not written."""
    copied = storage.clone()
    for tensor in range(storage.shape[0]):
        for source, target in zip(src, dst, strict=True):
            copied[tensor, target] = storage[tensor, source]
    return copied
