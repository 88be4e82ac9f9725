"""The tokens that go into a step and those that come out of it, against the oracle: in torch, emulated, on a GPU."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.emit_tokens.cuda import emit_tokens_cuda
from plugins.emit_tokens.plain import emit_tokens_plain
from plugins.emit_tokens.reference import emit_tokens_reference
from plugins.place_tokens.cuda import place_tokens_cuda
from plugins.place_tokens.plain import place_tokens_plain
from plugins.place_tokens.reference import place_tokens_reference

NUM_NODES, LONGEST = 5, 40


@pytest.fixture
def run(kernel_device):
    """Call both implementations of an op on copies; returns all tensors as both leave them."""

    def copies(tensors, device):
        return [part.clone().to(device) if isinstance(part, torch.Tensor) else part for part in tensors]

    def call(plain, kernel, *tensors):
        expected, got = copies(tensors, "cpu"), copies(tensors, kernel_device)
        plain(*expected)
        kernel(*got)
        got = copies(got, "cpu")
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        return got

    return call


CASES = {
    "one decode": ([1], [1]),
    "decode": ([1, 1, 1], [1, 1, 1]),
    "prompts beside decode": ([1, 7, 1, 12], [1, 0, 1, 0]),
    "requests without tokens": ([0, 3, 0, 1, 0], [0, 0, 0, 1, 0]),
    "more tokens than threads": ([300], [0]),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_prompts_and_decode_are_placed(run, name):
    counts, is_drawn = CASES[name]
    check_places(run, counts, is_drawn, None)


@pytest.mark.parametrize("beside", [[], [0]])
def test_nodes_of_trees_are_placed_at_their_depths(run, beside):
    requests = 3 + len(beside)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(-1, 90, (requests, NUM_NODES), generator=generator)
    depths = torch.randint(0, NUM_NODES, (requests, NUM_NODES), generator=generator)
    check_places(run, [NUM_NODES] * 3 + [4] * len(beside), [1] * 3 + beside, (ids, depths))


def check_places(run, counts, is_drawn, tree):
    generator = torch.Generator().manual_seed(sum(counts))
    slots = torch.randperm(8, generator=generator)[: len(counts)]
    num_tokens = torch.randint(1, LONGEST, (8,), generator=generator)
    history = torch.randint(0, 99, (8, LONGEST), generator=generator)
    starts = torch.randint(0, LONGEST, (len(counts),), generator=generator)
    known = torch.randint(0, 99, (sum(counts),), generator=generator)
    given = (slots, torch.tensor([0, *counts]).cumsum(0), starts, torch.tensor(is_drawn), known, num_tokens, history)
    outputs = [torch.full_like(known, -9) for _ in range(3)] + [torch.full_like(slots, -9) for _ in range(2)]
    turn = torch.tensor([sum(counts) - 5]) if sum(is_drawn) else None
    done = run(place_tokens_plain, place_tokens_cuda, *given, *(tree or (None, None)), turn, *outputs)
    expected = place_tokens_reference(
        slots.tolist(), counts, starts.tolist(), is_drawn, known.tolist(), num_tokens.tolist(), history.tolist(),
        tree and (tree[0].tolist(), tree[1].tolist()),
    )  # fmt: skip
    assert [tensor.tolist() for tensor in done[10:]] == list(expected)
    assert turn is None or done[9] == sum(counts) - 4


@pytest.mark.parametrize("depth", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_nodes", [None, NUM_NODES, 64])
def test_emitted_tokens_go_to_their_texts_and_to_the_report_and_no_further(run, depth, dtype, num_nodes):
    generator = torch.Generator().manual_seed(depth)
    slots = torch.tensor([4, 0, 2])
    counts = torch.randint(1, depth + 2, (3,), generator=generator)
    nodes = torch.randint(0, NUM_NODES, (3, depth + 1), generator=generator) if depth else torch.zeros(3, 1).long()
    given = [
        slots, torch.tensor([0, 17, LONGEST - depth - 2]), torch.arange(3) * NUM_NODES,
        torch.randint(0, 99, (3, depth + 1), generator=generator), nodes, counts,
        torch.randn(3 * NUM_NODES, 300, dtype=dtype, generator=generator),
    ]  # fmt: skip
    state = [torch.full((6,), -9), torch.full((6, LONGEST), -9), torch.full((6, 300), -9.0, dtype=dtype)]
    trees = None if num_nodes is None else torch.randint(-2, 3, (3, num_nodes), generator=generator)
    for report in ([None, None, -1], [torch.tensor([9]), torch.full((4, 3, depth + 3), -9), 2]):
        everything = [*given, *state, trees, *report]
        done = run(emit_tokens_plain, emit_tokens_cuda, *everything)
        expected = [part.clone() if isinstance(part, torch.Tensor) else part for part in everything]
        emit_tokens_reference(*expected)
        for got, wanted in zip(done[len(given) :], expected[len(given) :], strict=True):
            assert torch.equal(got, wanted) if isinstance(wanted, torch.Tensor) else got == wanted


def test_numbers_of_another_dtype_are_refused():
    ones = torch.ones(1, dtype=torch.int32)
    with pytest.raises(KernelError, match=r"slots is .* torch\.int32"):
        place_tokens_cuda(*[ones] * 15)
    with pytest.raises(KernelError, match=r"slots is .* torch\.int32"):
        emit_tokens_cuda(*[ones] * 10, None, None, None, -1)
