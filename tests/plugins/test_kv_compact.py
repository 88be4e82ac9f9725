"""Moves within the cache against their reference."""

import torch

from plugins.kv_compact import kv_compact
from plugins.kv_compact.reference import kv_compact_reference


def test_moves_in_all_layers_read_before_they_write_and_touch_nothing_else():
    generator = torch.Generator().manual_seed(0)
    storage = torch.randn(6, 5, 2, 4, 8, generator=generator, dtype=torch.float64)
    for _ in range(20):
        rows = torch.randperm(5 * 2 * 4, generator=generator)
        sources, targets = rows[:12], torch.cat([rows[6:12], rows[12:18]])  # some targets are sources of others
        expected = kv_compact_reference(storage, sources.tolist(), targets.tolist())
        kv_compact(storage, sources, targets)
        assert torch.equal(storage, expected)


def test_pairs_of_equal_rows_and_no_pairs_move_nothing():
    storage = torch.randn(2, 2, 1, 4, 8)
    before = storage.clone()
    same = torch.tensor([3, 3, 5])
    kv_compact(storage, same, same)
    kv_compact(storage, same[:0], same[:0])
    assert torch.equal(storage, before)
