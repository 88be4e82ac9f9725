"""Moves one token and one layer at a time: the oracle."""

import torch


def kv_compact_reference(
    storage: torch.Tensor, block_tables: list[list[int]], roots: list[int], nodes: list[list[int]], counts: list[int]
) -> torch.Tensor:
    """Return the changed copy of `storage`; arguments as in `plugins.kv_compact`, with host lists."""
    block_size = storage.shape[3]
    result = storage.clone()
    for table, root, path, count in zip(block_tables, roots, nodes, counts, strict=True):
        for level in range(1, count):
            source, target = root + path[level], root + level
            for layer in range(storage.shape[0]):
                token = storage[layer, table[source // block_size], :, source % block_size]
                result[layer, table[target // block_size], :, target % block_size] = token
    return result
