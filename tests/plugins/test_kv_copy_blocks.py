"""Block copies against their reference."""

import pytest
import torch

from plugins.kv_copy_blocks import kv_copy_blocks
from plugins.kv_copy_blocks.reference import kv_copy_blocks_reference


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        pytest.param([], [], id="none"),
        pytest.param([4], [0], id="one"),
        pytest.param([1, 1, 5], [3, 0, 2], id="one block to two others"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_copies_whole_blocks_and_writes_nothing_else(src, dst, dtype):
    generator = torch.Generator().manual_seed(0)
    storage = torch.randn(6, 7, 2, 4, 8, generator=generator).to(dtype)
    storage[:, 6] = float("nan")  # a block that nobody has written
    expected = kv_copy_blocks_reference(storage, src, dst)
    kv_copy_blocks(storage, torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64))
    assert torch.equal(storage.nan_to_num(nan=1e30), expected.nan_to_num(nan=1e30))


def test_rows_that_are_not_written_yet_are_copied_as_they_are():
    """A source may be partly written: its owner and the copy's both fill their own rest."""
    storage = torch.full((2, 2, 1, 4, 1), float("nan"))
    storage[:, 0, :, :2] = 1.0
    kv_copy_blocks(storage, torch.tensor([0]), torch.tensor([1]))
    assert storage[:, 1, :, :2].eq(1.0).all()
    assert storage[:, 1, :, 2:].isnan().all()
