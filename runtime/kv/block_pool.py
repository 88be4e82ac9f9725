"""Reference-counted ownership of cache blocks. Holds numbers only: no tensors, and not what the blocks contain."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable


class BlockPool:
    """Blocks 0 .. num_blocks - 1, each in one of three states.

    free: nobody holds it, and nothing in it is wanted.
    held: one or more holders use it.
    cached: nobody holds it, but its content is kept (see `keep`) until the block is needed.

    Free blocks are handed out first, the one released longest ago before the others; then cached ones are evicted,
    the least recently used first. Holders release their blocks deepest first, so that of a chain of cached blocks the
    leaf goes before its parent.
    """

    def __init__(self, num_blocks: int) -> None:
        self.on_evict: Callable[[int], None] = _ignore  # told each block whose kept content is about to be lost
        self._free = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._ref_counts = [0] * num_blocks
        self._kept: set[int] = set()  # held or cached

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give: free ones and those that it may evict."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_blocks(self) -> int:
        return len(self._ref_counts)

    def can_allocate(self, count: int) -> bool:
        return count <= self.num_free

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one holder. The caller has asked `can_allocate`."""
        assert self.can_allocate(count), f"{count} blocks wanted, {self.num_free} free"
        while len(self._free) < count:
            self._evict()
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add a holder to each of `blocks`, all of which are held or cached."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                assert block in self._cached, f"block {block} is free and cannot be shared"
                del self._cached[block]
            self._ref_counts[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Take one holder from each of `blocks`, the last of them first."""
        for block in reversed(blocks):
            assert self._ref_counts[block] > 0, f"block {block} was released more often than held"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._kept:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def keep(self, block: int) -> None:
        """Cache a held block, once its last holder has released it, instead of freeing it."""
        assert self._ref_counts[block] > 0, f"block {block} is not held; there is nothing to keep"
        self._kept.add(block)

    def evict_all(self) -> None:
        """Free every cached block."""
        while self._cached:
            self._evict()

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def cached_blocks(self) -> list[int]:
        """The cached blocks in the order in which they would be evicted."""
        return list(self._cached)

    def is_kept(self, block: int) -> bool:
        return block in self._kept

    def check(self) -> None:
        """Assert that every block is in exactly one state."""
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is in the free list twice"
        held = {block for block, count in enumerate(self._ref_counts) if count > 0}
        for one, other, states in ((free, held, "free and held"), (free, cached, "free and cached"),
                                   (cached, held, "cached and held")):  # fmt: skip
            assert not one & other, f"blocks {sorted(one & other)} are {states} at once"
        assert len(free) + len(held) + len(cached) == self.num_blocks, "a block is in no state"
        assert cached <= self._kept <= cached | held, "a free block is kept, or a cached one is not"

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        self._kept.remove(block)
        self._free.append(block)
        self.on_evict(block)


def _ignore(block: int) -> None:
    """Nobody wants to know."""
