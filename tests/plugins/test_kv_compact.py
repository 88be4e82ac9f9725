"""Moves of accepted paths within the cache: in torch, and by the kernel, emulated and on a GPU."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.kv_compact import kv_compact
from plugins.kv_compact.cuda import kv_compact_cuda
from plugins.kv_compact.reference import kv_compact_reference

BLOCK_SIZE, LEVELS = 4, 5


def case(seed: int, dtype=torch.float64, head_dim=8, requests=3):
    """Storage, and paths of 1 to LEVELS nodes in trees of 9 over blocks that lie anywhere."""
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randperm(4 * requests, generator=generator).view(requests, 4)
    storage = torch.randn(6, 4 * requests, 2, BLOCK_SIZE, head_dim, generator=generator).to(dtype)
    roots = torch.randint(0, 4 * BLOCK_SIZE - 9, (requests,), generator=generator)
    counts = torch.randint(1, LEVELS + 1, (requests,), generator=generator)
    drawn = [torch.randperm(8, generator=generator)[: LEVELS - 1].sort().values + 1 for _ in range(requests)]
    nodes = torch.stack([torch.cat([torch.zeros(1, dtype=torch.int64), one]) for one in drawn])
    nodes[torch.arange(LEVELS) >= counts.unsqueeze(1)] = 7  # meaningless past the count
    return storage, tables, roots, nodes, counts


@pytest.mark.parametrize("seed", range(12))
def test_paths_move_in_all_layers_read_before_written_and_touch_nothing_else(seed):
    storage, *paths = case(seed)
    expected = kv_compact_reference(storage, *(part.tolist() for part in paths))
    kv_compact(storage, *paths)
    assert torch.equal(storage, expected)


def test_the_worked_example():
    storage = torch.arange(16.0).view(1, 4, 1, 4, 1).clone()
    path = torch.tensor([[0, 1, 2, 5]])
    kv_compact(storage, torch.arange(4).unsqueeze(0), torch.tensor([9]), path, torch.tensor([4]))
    assert storage.flatten().tolist() == [*range(12), 14, 13, 14, 15]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("head_dim", [8, 64, 96])
def test_the_kernel_moves_what_the_reference_moves(kernel_device, dtype, head_dim):
    for seed in range(3):
        storage, *paths = case(seed, dtype, head_dim)
        expected = kv_compact_reference(storage, *(part.tolist() for part in paths))
        moved = storage.to(kernel_device, copy=True)
        kv_compact_cuda(moved, *(part.to(kernel_device) for part in paths))
        assert torch.equal(moved.cpu(), expected)


def test_a_long_chain_of_many_heads_waits_in_narrower_slices(kernel_device):
    levels, heads = 64, 32
    storage = torch.randn(1, 4, heads, 32, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    nodes = torch.arange(levels).unsqueeze(0) + (torch.arange(levels) >= 9)  # node 9 was not accepted, its sibling was
    paths = torch.arange(4).unsqueeze(0), torch.tensor([30]), nodes, torch.tensor([levels])
    expected = kv_compact_reference(storage, *(part.tolist() for part in paths))
    moved = storage.to(kernel_device, copy=True)
    kv_compact_cuda(moved, *(part.to(kernel_device) for part in paths))
    assert torch.equal(moved.cpu(), expected)


def test_no_requests_and_roots_alone_move_nothing_and_odd_rows_are_refused(kernel_device):
    storage, *paths = (part.to(kernel_device) for part in case(0))
    before = storage.clone()
    kv_compact_cuda(storage, *(part[:0] for part in paths))
    kv_compact_cuda(storage, *paths[:3], torch.ones_like(paths[3]))
    assert torch.equal(storage, before)
    with pytest.raises(KernelError, match=r"rows must be multiples of 16 bytes"):
        kv_compact_cuda(storage.float()[..., :3].contiguous(), *paths)
