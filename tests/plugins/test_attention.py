"""Attention over the paged cache against its reference, on hostile inputs."""

import pytest
import torch

from plugins.attention import AttentionShape, attention, plan_attention
from plugins.attention.reference import attention_reference

# float64 runs the same vectorised code, so it is held to rounding; float32 sums at most 100 products of size about 1;
# bfloat16 rounds inputs and outputs to 8 bits.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}
BLOCK_SIZE = 8


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
    shape = AttentionShape(num_heads, num_kv_heads, BLOCK_SIZE, window)
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


@pytest.mark.parametrize(("query_len", "context_len"), [(0, 4), (5, 4)])
def test_a_request_without_queries_or_context_is_refused(query_len, context_len):
    shape = AttentionShape(2, 1, BLOCK_SIZE, None)
    with pytest.raises(ValueError, match=f"{query_len} new tokens in a context of {context_len}"):
        plan_attention(
            shape,
            torch.tensor([0, query_len]),
            torch.tensor([context_len]),
            torch.zeros(1, 1, dtype=torch.int64),
            torch.float64,
        )
