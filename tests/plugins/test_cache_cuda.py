"""The kernels that write the KV cache: rotary positions, block copies."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.kv_copy_blocks.cuda import kv_copy_blocks_cuda
from plugins.kv_copy_blocks.reference import kv_copy_blocks_reference
from plugins.rope_kv_write.cuda import rope_kv_write_cuda
from plugins.rope_kv_write.reference import rope_kv_write_reference

BLOCK_SIZE, NUM_BLOCKS = 4, 5
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # of one rounding, relative


def rope_case(device, dtype, head_dim, num_heads, num_kv_heads, num_tokens, with_norm):
    """(arguments of the op but eps, the same for the reference in float64)."""
    generator = torch.Generator().manual_seed(num_tokens + head_dim)
    width = (num_heads + 2 * num_kv_heads) * head_dim
    wide = torch.full((num_tokens, width + 8), float("nan"), dtype=dtype)
    wide[:, :width] = torch.randn(num_tokens, width, generator=generator)
    angles = torch.rand(num_tokens, head_dim // 2, generator=generator, dtype=torch.float64) * 6
    cos, sin = (
        torch.cat(halves, 1).to(device, dtype) for halves in ([angles.cos()] * 2, [-angles.sin(), angles.sin()])
    )
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=generator)[:num_tokens]
    rows = [[(s // BLOCK_SIZE * num_kv_heads + h) * BLOCK_SIZE + s % BLOCK_SIZE for h in range(num_kv_heads)]
            for s in slots.tolist()]  # fmt: skip
    norms = [(torch.rand(head_dim, generator=generator) + 0.5).to(device, dtype) if with_norm else None] * 2
    shape = (NUM_BLOCKS, num_kv_heads, BLOCK_SIZE, head_dim)
    caches = [torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(2)]
    q_out = torch.full((num_tokens, num_heads, head_dim), float("nan"), dtype=dtype, device=device)
    kv_rows = torch.tensor(rows, dtype=torch.int64, device=device).view(num_tokens, num_kv_heads)
    return wide.to(device)[:, :width], cos, sin, kv_rows, norms, caches, q_out, angles, slots


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "heads", "num_tokens", "dtype"),
    [
        (16, (2, 1), 1, torch.bfloat16),
        (64, (6, 2), 7, torch.bfloat16),
        (64, (9, 3), 1, torch.float16),
        (96, (3, 1), 5, torch.bfloat16),
        (96, (2, 1), 2, torch.float16),
        (128, (4, 4), 3, torch.float16),
        (128, (2, 1), 2, torch.bfloat16),
        (256, (2, 1), 3, torch.bfloat16),
        (256, (2, 2), 2, torch.float16),
    ],
)
def test_rope_equals_the_reference_and_writes_nothing_else(
    kernel_device, head_dim, heads, num_tokens, dtype, with_norm
):
    case = rope_case(kernel_device, dtype, head_dim, *heads, num_tokens, with_norm)
    qkv, cos, sin, kv_rows, norms, caches, q_out, angles, slots = case
    rope_kv_write_cuda(qkv, cos, sin, kv_rows, *norms, 1e-5, *caches, q_out)
    expected = [torch.full(caches[0].shape, float("nan"), dtype=torch.float64) for _ in range(2)]
    on_host = [None if norm is None else norm.cpu() for norm in norms]
    q_expected = rope_kv_write_reference(
        qkv.cpu().contiguous(), angles, slots.tolist(), *on_host, 1e-5, *expected, heads[0]
    )  # fmt: skip
    # cos and sin are rounded to the dtype, by half a unit of up to 1 each, then the sum of two products once.
    unit = ROUNDOFF[dtype]
    allowed = 4 * unit * float(q_expected.abs().max().clamp(min=expected[0].nan_to_num().abs().max()))
    assert (q_out.double().cpu() - q_expected).abs().max() <= allowed
    for got, want in zip(caches, expected, strict=True):
        assert torch.equal(got.isnan().cpu(), want.isnan()), "a slot that no token owns was written, or one was missed"
        assert (got.double().cpu() - want).nan_to_num().abs().max() <= allowed


def test_values_reach_the_cache_as_they_are(kernel_device):
    qkv, cos, sin, kv_rows, norms, caches, q_out, _, _ = rope_case(kernel_device, torch.bfloat16, 64, 4, 2, 9, True)
    rope_kv_write_cuda(qkv, cos, sin, kv_rows, *norms, 1e-5, *caches, q_out)
    assert torch.equal(caches[1].view(-1, 64)[kv_rows], qkv.view(9, 8, 64)[:, 6:])


def test_rope_of_no_tokens_and_wrong_sizes(kernel_device):
    qkv, cos, sin, kv_rows, norms, caches, q_out, _, _ = rope_case(kernel_device, torch.bfloat16, 64, 4, 2, 0, False)
    rope_kv_write_cuda(qkv, cos, sin, kv_rows, *norms, 1e-5, *caches, q_out)
    assert caches[0].isnan().all()
    with pytest.raises(KernelError, match="head_dim is 48"):
        rope_kv_write_cuda(qkv, cos, sin, kv_rows, *norms, 1e-5, *caches, q_out[:, :, :48].contiguous())
    with pytest.raises(KernelError, match="qkv is"):
        rope_kv_write_cuda(qkv[:, :64], cos, sin, kv_rows, *norms, 1e-5, *caches, q_out)
    weight = torch.ones(64, dtype=torch.bfloat16, device=kernel_device)
    with pytest.raises(KernelError, match="one of q_norm and k_norm is missing"):
        rope_kv_write_cuda(qkv, cos, sin, kv_rows, weight, None, 1e-5, *caches, q_out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("copies", [[], [(0, 3)], [(1, 0), (1, 4), (2, 3)]], ids=str)
def test_block_copies_touch_the_targets_alone(kernel_device, copies, dtype):
    storage = torch.randn(6, NUM_BLOCKS, 2, BLOCK_SIZE, 8).to(kernel_device, dtype)
    pairs = torch.tensor(copies, dtype=torch.int64, device=kernel_device).view(-1, 2)
    expected = kv_copy_blocks_reference(storage.cpu(), *pairs.T.tolist()) if copies else storage.cpu().clone()
    kv_copy_blocks_cuda(storage, pairs[:, 0], pairs[:, 1])
    assert torch.equal(storage.cpu(), expected)


def test_caches_that_are_no_multiples_of_16_bytes_are_refused(kernel_device):
    storage = torch.zeros(2, 3, 1, 1, 4, dtype=torch.bfloat16, device=kernel_device)
    one = torch.zeros(1, dtype=torch.int64, device=kernel_device)
    with pytest.raises(KernelError, match="multiples of 16 bytes"):
        kv_copy_blocks_cuda(storage, one, one + 1)
