"""Moves in vectorised torch, on any device: one gather and one scatter for all layers."""

import torch


def kv_compact_plain(
    storage: torch.Tensor, block_tables: torch.Tensor, roots: torch.Tensor, nodes: torch.Tensor, counts: torch.Tensor
) -> None:
    levels = torch.arange(1, nodes.shape[1], device=nodes.device)
    is_accepted = levels < counts.unsqueeze(1)
    first = roots.unsqueeze(1)
    # What is not accepted stays: the root moves onto itself.
    sources, targets = (first + torch.where(is_accepted, at, 0) for at in (nodes[:, 1:], levels))
    rows = storage.view(storage.shape[0], -1, storage.shape[-1])
    found = rows.index_select(1, _rows(storage, block_tables, sources))
    rows.index_copy_(1, _rows(storage, block_tables, targets), found)


def _rows(storage: torch.Tensor, block_tables: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows of one layer seen as (num_blocks * N_kv * block_size, D): (E, K) positions -> (E * K * N_kv,)."""
    _, _, num_kv_heads, block_size, _ = storage.shape
    blocks = block_tables.gather(1, positions // block_size)
    heads = torch.arange(num_kv_heads, device=positions.device)
    return (
        (blocks.unsqueeze(-1) * num_kv_heads + heads) * block_size + (positions % block_size).unsqueeze(-1)
    ).flatten()
