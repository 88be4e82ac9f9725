"""Reference-counted ownership of cache blocks. Holds numbers only, no tensors."""

from collections import deque


class BlockPool:
    """Blocks 0 .. num_blocks - 1, each free or owned by one or more holders.

    A block returns to the pool when its last holder releases it. The block released longest ago is handed out first.
    """

    def __init__(self, num_blocks: int) -> None:
        self._free = deque(range(num_blocks))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_blocks(self) -> int:
        return len(self._ref_counts)

    def can_allocate(self, count: int) -> bool:
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one holder. The caller has asked `can_allocate`."""
        assert self.can_allocate(count), f"{count} blocks wanted, {self.num_free} free"
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def share(self, blocks: list[int]) -> None:
        """Add a holder to each of `blocks`, all of which have one."""
        for block in blocks:
            assert self._ref_counts[block] > 0, f"block {block} is free and cannot be shared"
            self._ref_counts[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Take one holder from each of `blocks`."""
        for block in blocks:
            assert self._ref_counts[block] > 0, f"block {block} was released more often than held"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free.append(block)

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def check(self) -> None:
        """Assert that every block is either free once or held, and none is both or neither."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        held = {block for block, count in enumerate(self._ref_counts) if count > 0}
        assert not free & held, f"blocks {sorted(free & held)} are free and held at once"
        assert len(free) + len(held) == self.num_blocks, "a block is neither free nor held"
