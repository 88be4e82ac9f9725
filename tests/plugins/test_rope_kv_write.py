"""Rotary positions and the cache write against their reference."""

import pytest
import torch

from plugins.rope_kv_write import rope_kv_write
from plugins.rope_kv_write.reference import rope_kv_write_reference

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 6, 2, 8, 4, 5


def caches(dtype):
    shape = (NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    return torch.full(shape, float("nan"), dtype=dtype), torch.full(shape, float("nan"), dtype=dtype)


@pytest.mark.parametrize("num_tokens", [1, 7])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
def test_equals_the_reference_and_writes_nothing_else(num_tokens, with_norm, dtype, tolerance):
    generator = torch.Generator().manual_seed(num_tokens)
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    # A strided slice: the op may be given a view.
    qkv = torch.randn(num_tokens, width, generator=generator, dtype=dtype)
    angles = torch.rand(num_tokens, HEAD_DIM // 2, generator=generator, dtype=torch.float64) * 6
    cos = torch.cat([angles.cos(), angles.cos()], dim=1).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], dim=1).to(dtype)
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=generator)[:num_tokens]
    q_norm, k_norm = (torch.rand(HEAD_DIM, dtype=dtype) + 0.5 for _ in range(2)) if with_norm else (None, None)
    k_cache, v_cache = caches(dtype)
    q_out = torch.full((num_tokens, NUM_HEADS, HEAD_DIM), float("nan"), dtype=dtype)
    kv_rows = torch.tensor([
        [(slot // BLOCK_SIZE * NUM_KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE for head in range(NUM_KV_HEADS)]
        for slot in slots.tolist()
    ])  # fmt: skip
    rope_kv_write(qkv, cos, sin, kv_rows, q_norm, k_norm, 1e-5, k_cache, v_cache, q_out)

    k_expected, v_expected = caches(torch.float64)
    q_expected = rope_kv_write_reference(
        qkv, angles, slots.tolist(), q_norm, k_norm, 1e-5, k_expected, v_expected, NUM_HEADS
    )  # fmt: skip
    assert (q_out.double() - q_expected).abs().max() <= tolerance
    for got, expected in ((k_cache, k_expected), (v_cache, v_expected)):
        assert torch.equal(got.isnan(), expected.isnan()), "a slot that no token owns was written, or one was missed"
        assert (got.double() - expected).nan_to_num().abs().max() <= tolerance
