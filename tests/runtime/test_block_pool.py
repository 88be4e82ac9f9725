"""Block ownership under random use."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kv.block_pool import BlockPool

OPERATIONS = st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 5)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_every_block_is_free_or_held_and_returns_with_its_last_holder(operations):
    pool = BlockPool(7)
    holders: list[list[int]] = []
    for operation, amount in operations:
        if operation == "allocate" and pool.can_allocate(amount):
            holders.append(pool.allocate(amount))
        elif operation == "share" and holders:
            shared = holders[amount % len(holders)]
            pool.share(shared)
            holders.append(list(shared))
        elif operation == "release" and holders:
            pool.release(holders.pop(amount % len(holders)))
        pool.check()
        for block in range(7):
            assert pool.ref_count(block) == sum(block in held for held in holders)
    for held in holders:
        pool.release(held)
    assert pool.num_free == 7


@pytest.mark.parametrize("misuse", ["allocate", "share", "release"])
def test_misuse_is_an_assertion(misuse):
    pool = BlockPool(2)
    with pytest.raises(AssertionError):
        pool.allocate(3) if misuse == "allocate" else getattr(pool, misuse)([0])
