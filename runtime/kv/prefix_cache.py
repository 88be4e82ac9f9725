"""Which block holds which tokens: the hash chain over blocks, and what it has saved. Knows no requests, no tensors."""

import hashlib
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runtime.kv.block_pool import BlockPool

Key = bytes


def root_key(salt: str) -> Key:
    """The key before the first block. Chains of different salts never meet."""
    return hashlib.sha256(b"enginewright prefix\0" + salt.encode(errors="surrogatepass")).digest()


def block_key(parent: Key, token_ids: Sequence[int]) -> Key:
    """The key of a full block: it stands for the salt and for every token from the first to the block's last."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


def common_len(some: Sequence[int], others: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    length = min(len(some), len(others))
    return next((index for index in range(length) if some[index] != others[index]), length)


class CachedBlock(NamedTuple):
    """A registered block: its rows hold keys and values of `token_ids` after all the tokens of `parent`."""

    block: int
    key: Key
    parent: Key
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PrefixStats:
    """What reuse has done since the engine was loaded. Tokens as vLLM counts them: at admission, without readmissions.

    queries: tokens of the admitted requests. hits: those of them that were not computed again.
    evictions: blocks whose content was given up for room. cached_blocks: unreferenced blocks that are kept now.
    """

    queries: int = 0
    hits: int = 0
    evictions: int = 0
    cached_blocks: int = 0


class PrefixCache:
    """Full blocks by the key of their tokens. One block has one key, one key one block.

    Whoever holds a registered block holds the registered blocks of all its ancestors, so that eviction, which takes
    the least recently used block, never takes a block before its children.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._by_key: dict[Key, CachedBlock] = {}
        self._by_block: dict[int, CachedBlock] = {}
        self._children: dict[Key, dict[int, CachedBlock]] = {}  # by parent, then block
        self._queries = self._hits = self._evictions = 0
        pool.on_evict = self._forget

    @property
    def stats(self) -> PrefixStats:
        return PrefixStats(self._queries, self._hits, self._evictions, self._pool.num_cached)

    def count(self, queries: int, hits: int) -> None:
        """Add an admitted request to the statistics."""
        self._queries += queries
        self._hits += hits

    def lookup(self, key: Key) -> int | None:
        """The block that is registered under `key`."""
        cached = self._by_key.get(key)
        return None if cached is None else cached.block

    def match(self, keys: Sequence[Key]) -> list[int]:
        """The registered blocks of a chain's first keys, up to the first that is missing."""
        blocks = []
        for key in keys:
            block = self.lookup(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def children(self, parent: Key) -> Collection[CachedBlock]:
        """The registered blocks that follow the tokens of `parent`."""
        return self._children.get(parent, {}).values()

    def register(self, key: Key, parent: Key, token_ids: Sequence[int], block: int) -> None:
        """Let `block`, held and never written again, be found under `key`, which is not taken."""
        assert key not in self._by_key, f"block {self.lookup(key)} has these tokens already"
        assert block not in self._by_block, f"block {block} has other tokens already"
        cached = CachedBlock(block, key, parent, tuple(token_ids))
        self._by_key[key] = self._by_block[block] = cached
        self._children.setdefault(parent, {})[block] = cached
        self._pool.keep(block)

    def clear(self) -> None:
        """Give up every block that nobody holds."""
        evictions = self._evictions
        self._pool.evict_all()
        self._evictions = evictions  # for room alone

    def check(self) -> None:
        """Assert that indices agree, parents outlive children and holders hold whole chains."""
        assert {cached.key: cached for cached in self._by_block.values()} == self._by_key
        listed = {block: cached for children in self._children.values() for block, cached in children.items()}
        assert listed == self._by_block
        assert all(self._children.values())
        kept = {block for block in range(self._pool.num_blocks) if self._pool.is_kept(block)}
        assert kept == set(self._by_block), "a kept block is not registered, or a registered one not kept"
        age = {block: index for index, block in enumerate(self._pool.cached_blocks())}
        for parent, children in self._children.items():
            above = self._by_key.get(parent)
            if above is None:  # a root: of these children nobody knows the parent
                continue
            holders = sum(self._pool.ref_count(block) for block in children)
            assert self._pool.ref_count(above.block) >= holders, "a holder of a block does not hold its parent"
            older = [age[block] for block in children if block in age]
            assert above.block not in age or max(older, default=-1) < age[above.block], "a parent goes before its child"

    def _forget(self, block: int) -> None:
        cached = self._by_block.pop(block)
        assert cached.key not in self._children, f"block {block} is evicted before its children"
        del self._by_key[cached.key]
        siblings = self._children[cached.parent]
        del siblings[block]
        if not siblings:
            del self._children[cached.parent]
        self._evictions += 1
