"""The sampling kernels against the batched implementation: the same token for the same logits."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.sample.batched import NO_TOKEN, sample_batched
from plugins.sample.cuda import sample_cuda, sample_slots_cuda

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

FILTERS = {
    "greedy": {"temperature": 0.0},
    "no filter": {},
    "cold": {"temperature": 0.2},
    "top_k 1": {"top_k": 1},
    "top_k": {"top_k": 7},
    "top_k of all": {"top_k": 10**9},
    "top_p": {"top_p": 0.7},
    "top_p of next to nothing": {"top_p": 1e-6},
    "min_p": {"min_p": 0.1},
    "all": {"temperature": 1.7, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
}


def parameters(filters, num_rows, device):
    """What `sample` takes after the logits, with other draws in every row."""
    wanted = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    dtypes = {"temperature": torch.float32, "top_k": torch.int64, "top_p": torch.float32, "min_p": torch.float32}
    rows = [torch.full((num_rows,), wanted[name], dtype=dtype, device=device) for name, dtype in dtypes.items()]
    at = torch.arange(num_rows, device=device)
    return [*rows, at * 7919 - 3, at % 3, at * 11 + 5]


def compare(logits, filters):
    given = parameters(filters, len(logits), logits.device)
    out, expected = (torch.full((len(logits),), -7, device=logits.device) for _ in range(2))
    sample_cuda(logits, *given, out)
    sample_batched(logits, *given, expected)
    return out, expected


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_kernels_draw_what_torch_draws(kernel_device, filters):
    logits = torch.randn(2, 4103, generator=torch.Generator().manual_seed(1)) * 2
    out, expected = compare(logits.to(kernel_device), filters)
    assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("rows_each", [1, 3])
@pytest.mark.parametrize("filters", [{"temperature": 0.0}, {}, {"top_k": 7, "top_p": 0.8}], ids=str)
def test_rows_of_a_request_draw_as_its_slot_says_behind_its_root(kernel_device, filters, rows_each):
    slots, roots = torch.tensor([3, 0], device=kernel_device), torch.tensor([17, 4], device=kernel_device)
    depths = torch.tensor([0, 1, 1, 0, 1, 2], device=kernel_device)[: 2 * rows_each] if rows_each > 1 else None
    *state, _ = parameters(filters, 5, kernel_device)
    logits = torch.randn(2 * rows_each, 997, generator=torch.Generator().manual_seed(2)).to(kernel_device) * 2
    out, expected = (torch.full((2 * rows_each,), -7, device=kernel_device) for _ in range(2))
    sample_slots_cuda(logits, *state, slots, roots, depths, out)
    each = [values[slots].repeat_interleave(rows_each) for values in state]
    behind = roots.repeat_interleave(rows_each) + 1 + (0 if depths is None else depths)
    sample_batched(logits, *each, behind, expected)
    assert out.tolist() == expected.tolist()


def test_ties_go_to_the_lower_token_and_nan_to_none(kernel_device):
    logits = torch.zeros(4, 301)
    logits[0, [7, 200]] = 3.0  # two of the largest
    logits[1, 4] = float("nan")
    logits[2, 100:] = -float("inf")
    logits[3] = 1.0  # a filter's edge goes through equal tokens
    for filters in ({"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.3}):
        out, expected = compare(logits.to(kernel_device), filters)
        assert out.tolist() == expected.tolist()
        assert out[1] == NO_TOKEN


def test_more_equal_tokens_than_a_block_holds_are_filtered_by_their_ids(kernel_device):
    logits = torch.zeros(2, 4999)
    logits[1, 4990:] = 1.0
    for filters in ({"top_k": 4321}, {"top_p": 0.9}, {"top_k": 4500, "top_p": 0.5}):
        out, expected = compare(logits.to(kernel_device), filters)
        assert out.tolist() == expected.tolist()


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [1, 3, 260, 4103, 49152, 151936])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_kernels_draw_what_torch_draws_of_whole_vocabularies(filters, vocab_size):
    """Tokens may differ where scores are equal but for the last bit of a logarithm: none did in 64 rows of any case."""
    generator = torch.Generator("cuda").manual_seed(vocab_size)
    logits = torch.randn(64, vocab_size, generator=generator, device="cuda") * 3
    out, expected = compare(logits, filters)
    assert out.tolist() == expected.tolist()


@needs_gpu
@pytest.mark.gpu
def test_a_row_is_drawn_the_same_alone_and_in_a_batch():
    logits = torch.randn(64, 49152, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    given = parameters({"top_p": 0.9}, 64, "cuda")
    together = torch.empty(64, dtype=torch.int64, device="cuda")
    sample_cuda(logits, *given, together)
    for row in (0, 13, 63):
        alone = torch.empty(1, dtype=torch.int64, device="cuda")
        sample_cuda(logits[row : row + 1], *(values[row : row + 1].contiguous() for values in given), alone)
        assert alone[0] == together[row]


def test_logits_of_another_dtype_are_refused():
    with pytest.raises(KernelError, match="float64"):
        compare(torch.zeros(1, 4, dtype=torch.float64), {})
