"""Moves one row and one layer at a time: the oracle."""

import torch


def kv_compact_reference(storage: torch.Tensor, source_rows: list[int], target_rows: list[int]) -> torch.Tensor:
    """Return the changed copy of `storage`; arguments as in `plugins.kv_compact`, with host lists."""
    _, _, num_kv_heads, block_size, _ = storage.shape
    result = storage.clone()

    def where(row: int) -> tuple[int, int, int]:
        block, rest = divmod(row, num_kv_heads * block_size)
        head, offset = divmod(rest, block_size)
        return block, head, offset

    for source, target in zip(source_rows, target_rows, strict=True):
        for layer in range(storage.shape[0]):
            result[layer][where(target)] = storage[layer][where(source)]
    return result
