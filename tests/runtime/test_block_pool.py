"""Block ownership under random use."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kv.block_pool import BlockPool

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["allocate", "share", "release", "keep", "evict"]), st.integers(0, 5)), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_every_block_is_free_held_or_cached_and_returns_with_its_last_holder(operations):
    pool = BlockPool(7)
    holders: list[list[int]] = []
    kept: list[int] = []  # cached ones in the order of their last use
    evicted = []
    pool.on_evict = evicted.append
    for operation, amount in operations:
        if operation == "allocate" and pool.can_allocate(amount):
            held = {block for blocks in holders for block in blocks}
            cached = [block for block in kept if block not in held]
            missing = max(0, amount - (7 - len(held) - len(cached)))
            holders.append(pool.allocate(amount))
            assert evicted == cached[:missing], "free blocks go first, then the least recently used"
        elif operation == "share" and holders:
            shared = holders[amount % len(holders)]
            pool.share(shared)
            holders.append(list(shared))
        elif operation == "release" and holders:
            released = holders.pop(amount % len(holders))
            pool.release(released)
            held = {block for blocks in holders for block in blocks}
            for block in reversed(released):  # the deepest is the first to go
                if block in kept and block not in held:
                    kept.append(kept.pop(kept.index(block)))
        elif operation == "keep" and holders and holders[-1]:
            block = holders[-1][amount % len(holders[-1])]
            pool.keep(block)
            if block not in kept:
                kept.append(block)
        elif operation == "evict":
            pool.evict_all()
        kept = [block for block in kept if block not in evicted]
        evicted.clear()
        pool.check()
        for block in range(7):
            assert pool.ref_count(block) == sum(block in held for held in holders)
            assert pool.is_kept(block) == (block in kept)
    for held in holders:
        pool.release(held)
    assert pool.num_free == 7
    assert pool.num_cached == len(kept)


def test_a_cached_block_can_be_held_again_and_keeps_its_content():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    for block in blocks:
        pool.keep(block)
    pool.release(blocks)
    assert (pool.num_free, pool.cached_blocks()) == (3, blocks[::-1])
    pool.share(blocks[:1])
    assert (pool.num_free, pool.cached_blocks()) == (2, blocks[1:])
    pool.check()


@pytest.mark.parametrize("misuse", ["allocate", "share", "release", "keep"])
def test_misuse_is_an_assertion(misuse):
    pool = BlockPool(2)
    with pytest.raises(AssertionError):
        {"allocate": lambda: pool.allocate(3), "share": lambda: pool.share([0]),
         "release": lambda: pool.release([0]), "keep": lambda: pool.keep(0)}[misuse]()  # fmt: skip
