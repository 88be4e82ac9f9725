"""The hash chain and its cache under random use, against a model that knows every block's whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kv.block_pool import BlockPool
from runtime.kv.prefix_cache import PrefixCache, block_key, root_key

BLOCK_SIZE, NUM_BLOCKS = 2, 8


def chain_of(salt, token_ids):
    keys = [root_key(salt)]
    for start in range(0, len(token_ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
        keys.append(block_key(keys[-1], token_ids[start : start + BLOCK_SIZE]))
    return keys


class Holder:
    """A request in the plainest form: its text, how many blocks of it are computed, and the blocks."""

    def __init__(self, salt, token_ids):
        self.salt, self.token_ids, self.blocks = salt, token_ids, []
        self.keys = chain_of(salt, token_ids)


def advance(holder, pool, cache, contents):
    """Compute the next block, or go over to one that has the same tokens."""
    index = len(holder.blocks)
    token_ids = holder.token_ids[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
    other = cache.lookup(holder.keys[index + 1])
    if other is not None:
        pool.share([other])
        holder.blocks.append(other)
    elif pool.can_allocate(1):
        (block,) = pool.allocate(1)
        cache.register(holder.keys[index + 1], holder.keys[index], token_ids, block)
        contents[block] = (holder.salt, holder.token_ids[: (index + 1) * BLOCK_SIZE])
        holder.blocks.append(block)


TEXTS = st.lists(st.integers(0, 1), min_size=2, max_size=8).filter(lambda text: len(text) % BLOCK_SIZE == 0)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.sampled_from(["", "tenant"]), TEXTS),
        st.tuples(st.sampled_from(["advance", "release"]), st.integers(0, 3)),
        st.tuples(st.just("clear")),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_a_match_is_the_text_itself_in_its_own_salt(operations):
    pool = BlockPool(NUM_BLOCKS)
    cache = PrefixCache(pool)
    holders, contents = [], {}
    for operation in operations:
        if operation[0] == "admit" and len(holders) < 4:
            holder = Holder(*operation[1:])
            holder.blocks = cache.match(holder.keys[1:])
            pool.share(holder.blocks)
            for index, block in enumerate(holder.blocks):
                assert contents[block] == (holder.salt, holder.token_ids[: (index + 1) * BLOCK_SIZE])
            holders.append(holder)
        elif operation[0] == "advance" and holders:
            holder = holders[operation[1] % len(holders)]
            if len(holder.blocks) + 1 < len(holder.keys):
                advance(holder, pool, cache, contents)
        elif operation[0] == "release" and holders:
            pool.release(holders.pop(operation[1] % len(holders)).blocks)
        elif operation[0] == "clear":
            cache.clear()
            assert cache.stats.cached_blocks == 0
        pool.check()
        cache.check()
        held = {block for holder in holders for block in holder.blocks}
        assert NUM_BLOCKS - pool.num_free == len(held)
    for holder in holders:
        pool.release(holder.blocks)
    pool.check()
    cache.check()
    assert pool.num_free == NUM_BLOCKS


def fill(pool, cache, salt, token_ids):
    holder = Holder(salt, token_ids)
    for _ in holder.keys[1:]:
        advance(holder, pool, cache, {})
    return holder


def test_a_key_stands_for_salt_order_and_every_token_before():
    keys = {block_key(root_key(salt), text) for salt in ("", "a", "b") for text in ([1, 2], [2, 1], [1, 2, 3])}
    assert len(keys) == 9
    assert chain_of("", [1, 2, 3, 4])[2] != chain_of("", [9, 9, 3, 4])[2]
    assert chain_of("", [1, 2, 3, 4])[2] == chain_of("", [1, 2, 3, 4, 5])[2]


def test_the_leaf_used_longest_ago_is_evicted_first():
    pool = BlockPool(5)
    cache = PrefixCache(pool)
    old, new = fill(pool, cache, "", [0, 0, 1, 1]), fill(pool, cache, "", [2, 2, 3, 3])
    for holder in (old, new):
        pool.release(holder.blocks)
    again = cache.match(old.keys[1:])  # used again: now the other is older
    pool.share(again)
    pool.release(again)
    pool.release(pool.allocate(2))  # one block is free, one is evicted
    assert cache.match(new.keys[1:]) == new.blocks[:1]
    assert cache.match(old.keys[1:]) == old.blocks
    assert (cache.stats.evictions, cache.stats.cached_blocks) == (1, 3)
    cache.check()


def test_children_are_those_of_one_parent_in_one_salt():
    pool = BlockPool(8)
    cache = PrefixCache(pool)
    one = fill(pool, cache, "", [0, 0, 1, 1])
    two = fill(pool, cache, "", [0, 0, 2, 2])
    fill(pool, cache, "tenant", [0, 0, 3, 3])
    assert one.blocks[0] == two.blocks[0]
    assert [child.token_ids for child in cache.children(one.keys[1])] == [(1, 1), (2, 2)]
    assert not cache.children(one.keys[2])


def test_a_block_is_registered_once():
    pool = BlockPool(4)
    cache = PrefixCache(pool)
    holder = fill(pool, cache, "", [0, 0])
    with pytest.raises(AssertionError):
        cache.register(holder.keys[1], holder.keys[0], [0, 0], pool.allocate(1)[0])
