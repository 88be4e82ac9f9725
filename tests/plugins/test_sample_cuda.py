"""The sampling kernel draws the tokens that the torch implementation draws of the same logits."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.sample.batched import NO_TOKEN, sample_batched
from plugins.sample.cuda import sample_cuda

FILTERS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.6},
    {"top_p": 0.999},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
]
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
INTEGERS = ("top_k", "seed", "sample_index", "position")


@pytest.fixture(params=["one block a row", "some blocks a row", "more rows than blocks"])
def grids(request, kernel_device, monkeypatch):
    if kernel_device == "cpu":
        processors = 1 if request.param == "more rows than blocks" else 8
        monkeypatch.setattr("plugins.sample.cuda.processors", lambda device: processors)
    if request.param == "some blocks a row":
        monkeypatch.setattr("plugins.sample.cuda.TOKENS_PER_BLOCK", 13)
    return kernel_device


def draw(implementation, logits, **parameters):
    """One value of a parameter for all rows, or a list of one per row."""
    rows = len(logits)
    values = {**DEFAULTS, "seed": -3, "sample_index": 2, "position": list(range(rows)), **parameters}
    tensors = {
        name: torch.tensor(
            value if isinstance(value, list) else [value] * rows,
            dtype=torch.int64 if name in INTEGERS else torch.float32,
            device=logits.device,
        )
        for name, value in values.items()
    }
    out = torch.full((rows,), -7, device=logits.device)
    implementation(logits, *(tensors[name] for name in (*DEFAULTS, "seed", "sample_index", "position")), out)
    return out.tolist()


def check(logits, **parameters):
    assert draw(sample_cuda, logits, **parameters) == draw(sample_batched, logits.cpu(), **parameters)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_what_torch_draws(grids, filters):
    logits = torch.randn(5, 103, generator=torch.Generator().manual_seed(1)) * 2
    check(logits.to(grids), **filters)


def test_rows_of_one_launch_have_their_own_filters(grids):
    logits = (torch.randn(6, 50, generator=torch.Generator().manual_seed(2)) * 2).to(grids)
    check(
        logits,
        temperature=[0.0, 1.0, 0.7, 0.0, 2.0, 1.0],
        top_k=[3, 0, 4, 0, 0, 7],
        top_p=[1.0, 1.0, 0.5, 0.5, 0.9, 1.0],
        min_p=[0.0, 0.3, 0.0, 0.0, 0.0, 0.01],
        seed=[5, 2**62, -1, 0, 2**32, 7],
    )


@pytest.mark.parametrize("filters", [{"top_k": 4}, {"top_p": 0.5}, {"temperature": 0.0}, {"top_k": 9, "top_p": 0.3}])
def test_ties_go_to_the_lower_token(grids, filters):
    """Few distinct logits, so that every edge of a filter is a tie; -0 and 0 are one."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.tensor([-1.0, -0.0, 0.0, 2.0])[torch.randint(0, 4, (5, 61), generator=generator)]
    check(logits.to(grids), **filters)


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.1}, {"temperature": 0.0}], ids=str)
def test_masked_tokens_are_never_drawn(grids, filters):
    logits = torch.full((4, 70), float("-inf"))
    logits[:, [3, 40, 41, 69]] = torch.tensor([1.0, -2.0, 0.5, 0.9])
    logits[3, :69] = float("-inf")
    got = draw(sample_cuda, logits.to(grids), **filters)
    assert got == draw(sample_batched, logits, **filters)
    assert set(got) <= {3, 40, 41, 69}
    assert got[3] == 69


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"temperature": 0.0}], ids=str)
def test_a_row_with_nan_has_no_token(grids, filters):
    logits = torch.zeros(3, 40)
    logits[1, 17] = float("nan")
    got = draw(sample_cuda, logits.to(grids), **filters)
    assert [token == NO_TOKEN for token in got] == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}], ids=str)
def test_narrow_logits(grids, dtype, filters):
    logits = (torch.randn(3, 77, generator=torch.Generator().manual_seed(4)) * 2).to(grids, dtype)
    assert draw(sample_cuda, logits, **filters) == draw(sample_batched, logits.cpu().float(), **filters)


def test_rows_may_be_apart_and_unaligned(grids):
    wide = torch.full((4, 60), float("nan"), device=grids)
    wide[:, 3:54] = torch.randn(4, 51, generator=torch.Generator().manual_seed(5)).to(grids)
    check(wide[:, 3:54], top_k=6)


def test_a_vocabulary_of_one_and_no_rows(grids):
    check(torch.zeros(2, 1, device=grids), top_k=1, top_p=0.1, min_p=1.0)
    assert draw(sample_cuda, torch.zeros(0, 8, device=grids)) == []


def test_launches_leave_their_counters_as_they_were(grids):
    logits = torch.randn(3, 90, generator=torch.Generator().manual_seed(6)).to(grids)
    first = draw(sample_cuda, logits, top_p=0.8)
    assert [draw(sample_cuda, logits, top_p=0.8) for _ in range(3)] == [first] * 3


def test_wrong_arguments_are_refused(grids):
    with pytest.raises(KernelError, match="a vocabulary of 0"):
        draw(sample_cuda, torch.zeros(2, 0, device=grids))
    with pytest.raises(KernelError, match="rows must be contiguous"):
        draw(sample_cuda, torch.zeros(8, 2, device=grids).T)


@pytest.mark.gpu
@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("vocab", [49152, 151936])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_draws_what_torch_draws_of_whole_vocabularies(rows, vocab, filters):
    generator = torch.Generator(device="cuda").manual_seed(rows)
    for seed in range(max(1, 64 // rows)):
        logits = torch.randn(rows, vocab, generator=generator, device="cuda") * 3
        expected = draw(sample_batched, logits, seed=seed, **filters)
        assert draw(sample_cuda, logits, seed=seed, **filters) == expected


@pytest.mark.gpu
def test_a_captured_launch_draws_of_what_is_there_at_its_replay():
    logits = torch.randn(4, 49152, device="cuda")
    values = {name: torch.full((4,), value, device="cuda") for name, value in (DEFAULTS | {"top_p": 0.9}).items()}
    values["top_k"] = values["top_k"].long()
    seeds, zeros, out = (torch.zeros(4, dtype=torch.int64, device="cuda") for _ in range(3))
    arguments = (logits, *values.values(), seeds, zeros, zeros, out)
    sample_cuda(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_cuda(*arguments)
    for seed in range(3):
        logits.normal_()
        seeds.fill_(seed)
        graph.replay()
        expected = torch.empty_like(out)
        sample_batched(*arguments[:-1], expected)
        assert torch.equal(out, expected)
