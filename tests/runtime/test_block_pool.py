"""Block ownership under any sequence of uses."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.kv.block_pool import BlockPool

NUM_BLOCKS = 7


class PoolUse(RuleBasedStateMachine):
    """Holders that take, share and give back blocks, wholly or in part; a model of who holds what is the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holders: list[list[int]] = []
        self.released: list[int] = list(range(NUM_BLOCKS))  # free blocks, the one that is next first

    @rule(count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> None:
        assert self.pool.can_allocate(count) == (count <= len(self.released))
        if count > len(self.released):
            with pytest.raises(AssertionError):
                self.pool.allocate(count)
            return
        blocks = self.pool.allocate(count)
        assert blocks == self.released[:count]  # the one released longest ago comes first
        del self.released[:count]
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share_a_prefix(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.holders))
        prefix = held[: data.draw(st.integers(0, len(held)))]
        self.pool.share(prefix)
        self.holders.append(list(prefix))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release_a_tail(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        held = self.holders.pop(index)
        kept = data.draw(st.integers(0, len(held)))
        self.pool.release(held[kept:])
        self.holders.insert(index, held[:kept])
        still_held = {block for blocks in self.holders for block in blocks}
        self.released += [block for block in held[kept:] if block not in still_held]

    @precondition(lambda self: self.released)
    @rule(data=st.data())
    def misuse_of_a_free_block_changes_nothing(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.released))
        for misuse in (self.pool.share, self.pool.release):
            with pytest.raises(AssertionError):
                misuse([block])

    @invariant()
    def every_block_is_free_or_held_as_often_as_the_model_says(self) -> None:
        self.pool.check()
        assert self.pool.num_free == len(self.released)
        for block in range(NUM_BLOCKS):
            assert self.pool.ref_count(block) == sum(block in held for held in self.holders)

    def teardown(self) -> None:
        for held in self.holders:
            self.pool.release(held)
        self.pool.check()
        assert self.pool.num_free == self.pool.num_blocks == NUM_BLOCKS


TestPoolUse = PoolUse.TestCase
TestPoolUse.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("misuse", ["allocate", "share", "release"])
def test_misuse_is_an_assertion(misuse):
    pool = BlockPool(2)
    with pytest.raises(AssertionError):
        pool.allocate(3) if misuse == "allocate" else getattr(pool, misuse)([0])
