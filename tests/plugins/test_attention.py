"""Attention over the paged cache against its reference, on hostile inputs."""

import pytest
import torch

from plugins.attention import AttentionShape, attention, plan_attention
from plugins.attention.dense import attention_dense, plan_attention_dense
from plugins.attention.reference import attention_reference

# float64 runs the same vectorised code, so it is held to rounding; float32 sums at most 100 products of size about 1;
# bfloat16 rounds inputs and outputs to 8 bits.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}
BLOCK_SIZE = 8


@pytest.fixture(params=["grouped", "dense"], autouse=True)
def implementation(request, monkeypatch):
    """Every test is of both: what the CPU uses, and what waits for nobody."""
    if request.param == "dense":
        monkeypatch.setattr("plugins.attention.plan_attention_cpu", dense_plan)
        monkeypatch.setattr("tests.plugins.test_attention.attention", dense_attention)


def dense_plan(shape, query_starts, context_lens, block_tables, dtype, ancestors):
    if bool((query_starts.diff() > context_lens).any()):
        pytest.skip("a GPU is not asked whether its own numbers fit")
    return plan_attention_dense(shape, int(query_starts[-1]), query_starts, context_lens, block_tables, ancestors)


def dense_attention(q, k_cache, v_cache, plan, scale, out):
    attention_dense(q, k_cache, v_cache, plan, scale, out)
    return out


def run_case(query_lens, context_lens, *, num_heads=6, num_kv_heads=2, head_dim=16, window=None, dtype=torch.float64):
    """Scatter random keys over random blocks of a cache full of NaN; return (got, expected)."""
    generator = torch.Generator().manual_seed(sum(context_lens) + len(query_lens))
    blocks_of = [-(-length // BLOCK_SIZE) for length in context_lens]
    order = torch.randperm(sum(blocks_of) + 3, generator=generator).tolist()
    tables = torch.full((len(context_lens), max(blocks_of)), 10**9)  # an entry past the last block must not be read
    k_cache = torch.full((len(order), num_kv_heads, BLOCK_SIZE, head_dim), float("nan"), dtype=dtype)
    v_cache = k_cache.clone()
    for request, length in enumerate(context_lens):
        for index in range(blocks_of[request]):
            block = order.pop()
            tables[request, index] = block
            filled = min(BLOCK_SIZE, length - index * BLOCK_SIZE)
            for cache in (k_cache, v_cache):
                cache[block, :, :filled] = torch.randn(num_kv_heads, filled, head_dim, generator=generator, dtype=dtype)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    q = torch.randn(int(starts[-1]), num_heads, head_dim, generator=generator, dtype=dtype)
    shape = AttentionShape(num_heads, num_kv_heads, BLOCK_SIZE, window, head_dim)
    plan = plan_attention(shape, starts, torch.tensor(context_lens), tables, dtype)
    out = torch.full_like(q, float("nan"))
    attention(q, k_cache, v_cache, plan, head_dim**-0.5, out)
    expected = attention_reference(
        q, k_cache, v_cache, starts.tolist(), context_lens, tables.tolist(), head_dim**-0.5, window
    )
    return out, expected


CASES = {
    "one decode": ([1], [1]),
    "decode at a block's edge": ([1, 1, 1], [7, 8, 9]),
    "ragged decode": ([1, 1, 1, 1], [1, 70, 33, 100]),
    "whole prompts": ([5, 16, 9], [5, 16, 9]),
    "prefill chunks over a past": ([4, 3], [20, 11]),
    "prefill and decode in one batch": ([1, 13, 1, 6], [40, 13, 9, 30]),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, dtype):
    got, expected = run_case(*CASES[name], dtype=dtype)
    assert (got.double() - expected).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 1), (9, 3)])
def test_any_group_size(num_heads, num_kv_heads):
    got, expected = run_case([1, 6, 1], [12, 6, 30], num_heads=num_heads, num_kv_heads=num_kv_heads)
    assert (got - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("window", [1, 5, 16, 1000])
def test_a_sliding_window_hides_older_keys(window):
    got, expected = run_case([1, 6, 1, 20], [12, 6, 30, 20], window=window)
    assert (got - expected).abs().max() <= 1e-12


def test_requests_without_queries_change_nothing():
    got, expected = run_case([1, 0, 6, 0], [12, 7, 6, 0])
    assert (got - expected).abs().max() <= 1e-12


@pytest.mark.parametrize(("query_len", "context_len"), [(1, 0), (5, 4)])
def test_more_queries_than_context_are_refused(query_len, context_len):
    shape = AttentionShape(2, 1, BLOCK_SIZE, None, 16)
    with pytest.raises(ValueError, match=f"{query_len} new tokens in a context of {context_len}"):
        plan_attention(
            shape,
            torch.tensor([0, query_len]),
            torch.tensor([context_len]),
            torch.zeros(1, 1, dtype=torch.int64),
            torch.float64,
        )


def tree_of(parents, num_nodes):
    """Ancestor bits of one tree; nodes past the given parents are padding."""
    bits = [1]
    for node, parent in enumerate(parents, start=1):
        bits.append(bits[parent] | 1 << node)
    return bits + [1 | 1 << node for node in range(len(bits), num_nodes)]


@pytest.mark.parametrize("window", [None, 3, 12])
def test_a_tree_equals_each_of_its_paths_as_a_chain(window):
    """Node i of a tree attends as the last token of the chain that ends in it; beside it, a chunk and a decode row."""
    generator = torch.Generator().manual_seed(0)
    parents, num_nodes, past = [0, 1, 1, 0, 2, 2], 8, [21, 0]
    bits = tree_of(parents, num_nodes)
    ancestors = torch.tensor([bits, [0] * num_nodes, tree_of([0, 1], num_nodes), [0] * num_nodes])
    query_lens, context_lens = [num_nodes, 5, num_nodes, 1], [past[0] + num_nodes, 9, past[1] + num_nodes, 30]
    tables = torch.arange(4 * 5).view(4, 5)
    k_cache = torch.randn(20, 2, BLOCK_SIZE, 16, generator=generator, dtype=torch.float64)
    v_cache = torch.randn(20, 2, BLOCK_SIZE, 16, generator=generator, dtype=torch.float64)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    q = torch.randn(int(starts[-1]), 4, 16, generator=generator, dtype=torch.float64)
    shape = AttentionShape(4, 2, BLOCK_SIZE, window, 16)
    plan = plan_attention(shape, starts, torch.tensor(context_lens), tables, torch.float64, ancestors)
    out = attention(q, k_cache, v_cache, plan, 0.25, torch.full_like(q, float("nan")))
    for request, first in ((0, past[0]), (2, past[1])):
        for node in range(num_nodes):
            keys = list(range(first)) + [first + j for j in range(num_nodes) if ancestors[request, node] >> j & 1]
            chain_k, chain_v = (
                torch.stack([cache[tables[request, key // BLOCK_SIZE], :, key % BLOCK_SIZE] for key in keys], dim=1)
                for cache in (k_cache, v_cache)
            )
            row = int(starts[request]) + node
            expected = attention_reference(
                q[row : row + 1], chain_k.unsqueeze(0), chain_v.unsqueeze(0), [0, 1], [len(keys)], [[0]], 0.25, window
            )
            assert (out[row] - expected[0]).abs().max() <= 1e-12
    for request in (1, 3):
        rows = slice(int(starts[request]), int(starts[request + 1]))
        expected = attention_reference(
            q[rows], k_cache, v_cache, [0, query_lens[request]], [context_lens[request]],
            tables[request : request + 1].tolist(), 0.25, window,
        )  # fmt: skip
        assert (out[rows] - expected).abs().max() <= 1e-12


def test_the_widest_tree_uses_all_64_bits():
    """The last node's own bit is the sign bit of its int64."""
    num_nodes = 64
    chain = tree_of(list(range(63)), num_nodes)
    ancestors = torch.tensor([[bits - 2**64 if bits >= 2**63 else bits for bits in chain]])
    tables = torch.arange(10).view(1, 10)
    generator = torch.Generator().manual_seed(0)
    k_cache, v_cache = torch.randn(2, 10, 2, BLOCK_SIZE, 16, generator=generator, dtype=torch.float64)
    q = torch.randn(num_nodes, 4, 16, generator=generator, dtype=torch.float64)
    shape, starts, lens = AttentionShape(4, 2, BLOCK_SIZE, None, 16), torch.tensor([0, 64]), torch.tensor([70])
    as_tree = plan_attention(shape, starts, lens, tables, torch.float64, ancestors)
    as_chain = plan_attention(shape, starts, lens, tables, torch.float64)
    outs = [attention(q, k_cache, v_cache, plan, 0.25, torch.empty_like(q)) for plan in (as_tree, as_chain)]
    assert (outs[0] - outs[1]).abs().max() <= 1e-12
