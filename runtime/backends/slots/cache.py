"""A KV cache of whole slots, one per request, that moves requests together so that a pass takes the first slots."""

import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch

from runtime.kv.cache import KVCache
from runtime.spec import ModelSpec


class SlotCache(KVCache):
    """Blocks as long as a sequence. The block pool's numbers stay; where a block lies changes: see `gather`.

    Every row holds numbers from the start, zeros, because attention multiplies what a mask hides by zero.
    """

    def __init__(
        self, spec: ModelSpec, num_slots: int, cache_len: int, dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(spec, num_slots, cache_len, dtype, "meta")
        self.storage = _zeros(self.storage.shape, dtype, torch.device(device))
        self.layers = [(self.storage[2 * layer], self.storage[2 * layer + 1]) for layer in range(spec.num_layers)]
        self._slot_of = list(range(num_slots))  # by block
        self._block_in = list(range(num_slots))  # by slot
        self._num_rows = [0] * num_slots  # by block: rows from here on hold nothing that anybody reads
        self.num_moves = 0  # exchanges of two slots

    def slot(self, block: int) -> int:
        """Where a block lies now."""
        return self._slot_of[block]

    def slots(self, blocks: torch.Tensor) -> torch.Tensor:
        """Where blocks lie now: int64 to int64 of the same shape."""
        return torch.tensor(self._slot_of, device=blocks.device)[blocks]

    def parts(self, first: int, count: int) -> list[torch.Tensor]:
        """K and V of every layer in some slots: (count, N_kv, Smax, D) each, aliasing the storage."""
        return [part for layer in self.layers for part in (layer[0][first : first + count],
                                                           layer[1][first : first + count])]  # fmt: skip

    def note_written(self, block: int, start: int, end: int) -> None:
        """Rows start .. end of a block are being written; from 0 on it is another request's than before."""
        self._num_rows[block] = end if start == 0 else max(end, self._num_rows[block])

    def copy_block(self, source: int, target: int) -> int:
        """Copy what a block holds over another; returns how many rows that were."""
        num_rows = self._num_rows[target] = self._num_rows[source]
        self.storage[:, self.slot(target), :, :num_rows] = self.storage[:, self.slot(source), :, :num_rows]
        return num_rows

    def gather(self, blocks: Sequence[int]) -> None:
        """Move `blocks` to the first slots, in any order; those in the way take their places."""
        wanted = set(blocks)
        free = [slot for slot in range(len(blocks)) if self._block_in[slot] not in wanted]
        for block in blocks:
            if self._slot_of[block] >= len(blocks):
                self._exchange(block, self._block_in[free.pop()])

    def _exchange(self, one: int, other: int) -> None:
        slots = self.slot(one), self.slot(other)
        num_rows = max(self._num_rows[one], self._num_rows[other])
        both = self.storage[:, slots, :, :num_rows]  # an index list copies
        self.storage[:, slots[0], :, :num_rows] = both[:, 1]
        self.storage[:, slots[1], :, :num_rows] = both[:, 0]
        for block, slot in ((one, slots[1]), (other, slots[0])):
            self._slot_of[block], self._block_in[slot] = slot, block
        self.num_moves += 1


def _zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """As torch.zeros. On the CPU the system gives zeroed pages, which cost no memory until they are written.

    Small pages: the first rows of every head are far apart, and huge pages would commit all that lies between.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, shape.numel() * dtype.itemsize)
    with suppress(AttributeError, OSError):  # a system without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
