"""Sampling: the random bits, the filters, and the distribution that comes out."""

import pytest
import torch

from plugins.sample import sample
from plugins.sample.batched import NO_TOKEN, sample_batched
from plugins.sample.philox import gumbel_noise, philox4x32
from plugins.sample.reference import filtered_distribution, sample_reference


@pytest.fixture(params=["cpu", "batched"], autouse=True)
def implementation(request, monkeypatch):
    """Every test is of both: what the CPU uses, and what waits for nobody."""
    if request.param == "batched":
        monkeypatch.setattr("tests.plugins.test_sample.sample", batched)
    return request.param


def batched(*args):
    sample_batched(*args)
    return args[-1]


def draw(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, sample_index=0, position=0):
    """One parameter value for all rows, or a tensor of one per row."""
    rows = logits.shape[0]

    def per_row(value, dtype):
        return value.to(dtype) if isinstance(value, torch.Tensor) else torch.full((rows,), value, dtype=dtype)

    return sample(
        logits,
        per_row(temperature, torch.float32),
        per_row(top_k, torch.int64),
        per_row(top_p, torch.float32),
        per_row(min_p, torch.float32),
        per_row(seed, torch.int64),
        per_row(sample_index, torch.int64),
        per_row(position, torch.int64),
        torch.full((rows,), -1),
    )


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert tuple(philox4x32(torch.tensor(counter), key).tolist()) == expected


def test_noise_depends_on_every_coordinate_and_on_nothing_else():
    tokens = torch.arange(64)
    base = gumbel_noise(tokens, seed=5, sample_index=1, position=9)
    assert torch.equal(base[[3, 60]], gumbel_noise(tokens[[3, 60]], seed=5, sample_index=1, position=9))
    for other in ((5 + 2**32, 1, 9), (6, 1, 9), (5, 2, 9), (5, 1, 10)):
        assert not torch.equal(base, gumbel_noise(tokens, *other))


FILTERS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_equals_the_reference_row_by_row(filters):
    logits = torch.randn(40, 23, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    positions = torch.arange(40)
    got = draw(logits, **filters, seed=-3, sample_index=2, position=positions).tolist()
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    as_stored = {name: torch.tensor(value, dtype=torch.float32).item() for name, value in defaults.items()}
    as_stored["top_k"] = defaults["top_k"]
    expected = [
        sample_reference(row.tolist(), **as_stored, seed=-3, sample_index=2, position=position)
        for position, row in enumerate(logits)
    ]
    assert got == expected


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.7, "top_k": 6}, {"top_p": 0.8}, {"min_p": 0.3}], ids=str)
def test_draws_follow_the_filtered_distribution(filters):
    num_draws, vocab = 20_000, 10
    logits = torch.linspace(-1.5, 1.5, vocab, dtype=torch.float64)
    rows = logits.repeat(num_draws, 1)
    counts = torch.bincount(draw(rows, **filters, seed=11, position=torch.arange(num_draws)), minlength=vocab).double()
    arguments = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    expected = torch.tensor(filtered_distribution(logits.tolist(), **arguments), dtype=torch.float64) * num_draws
    assert counts[expected == 0].sum() == 0, "a filtered token was drawn"
    kept = expected > 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    # 99.9th percentile of chi-square with 9 degrees of freedom; fewer degrees have a lower one
    assert chi_square < 27.9


def test_rows_do_not_see_each_other():
    logits = torch.randn(6, 50, dtype=torch.float64)
    seeds = torch.arange(6)
    together = draw(logits, seed=seeds)
    alone = torch.cat([draw(logits[row : row + 1], seed=seeds[row : row + 1]) for row in range(6)])
    assert torch.equal(together, alone)


def test_nan_logits_are_refused(implementation):
    logits = torch.zeros(2, 4)
    logits[1, 2] = float("nan")
    if implementation == "batched":
        assert (draw(logits, temperature=torch.tensor([0.0, 0.5])) == NO_TOKEN).tolist() == [False, True]
    else:
        with pytest.raises(ValueError, match="NaN"):
            draw(logits)
