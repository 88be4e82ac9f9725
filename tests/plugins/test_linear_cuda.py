"""Linear layers over few rows: the kernel against float64, and rows that do not depend on each other."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.linear import skinny
from plugins.linear.skinny import skinny_linear

RELATIVE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 0.0}  # of one rounding


@pytest.fixture(params=["one block a tile", "many blocks a tile"])
def grids(request, kernel_device, monkeypatch):
    if kernel_device == "cpu":
        monkeypatch.setattr("plugins.linear.skinny.processors", lambda device: 7)
        monkeypatch.setattr("plugins.linear.skinny.capability", lambda device: (9, 0))
    fewest = 100 if request.param == "one block a tile" else 1
    monkeypatch.setattr("plugins.linear.skinny._FEWEST_UNITS", fewest)
    return kernel_device


@pytest.fixture(params=[1, 2, 4])
def tiles(request, monkeypatch):
    monkeypatch.setattr("plugins.linear.skinny.row_warps_of", lambda out: request.param)


def case(device, rows, width, out, dtype, with_bias=False):
    """Rows of x apart from each other by poison; weights past `out` are poison too."""
    generator = torch.Generator().manual_seed(rows + width + out)
    x = torch.full((rows, width + 8), float("nan"), dtype=dtype)
    x[:, :width] = torch.randn(rows, width, generator=generator)
    weight = torch.full((out + 3, width), float("nan"), dtype=dtype)
    weight[:out] = torch.randn(out, width, generator=generator)
    bias = torch.randn(out, generator=generator).to(device, dtype) if with_bias else None
    return x.to(device)[:, :width], weight.to(device)[:out], bias


def check(y, x, weight, bias=None):
    """Within one rounding, and what float32 sums of `in` products in any order may be off by."""
    x, weight = x.cpu().double(), weight.cpu().double()
    exact = x @ weight.T + (0 if bias is None else bias.cpu().double())
    sums = x.abs() @ weight.abs().T * x.shape[1] * 2.0**-24
    assert ((y.cpu().double() - exact).abs() <= exact.abs() * RELATIVE[y.dtype] * 1.01 + sums + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "out"), [(1, 8, 1), (3, 72, 40), (9, 264, 130), (17, 320, 129), (33, 136, 70), (64, 512, 96)]
)
def test_equals_the_product(grids, tiles, rows, width, out, dtype):
    x, weight, bias = case(grids, rows, width, out, dtype, with_bias=rows != 9)
    y = torch.full((rows, out), float("nan"), dtype=dtype, device=grids)
    skinny_linear(x, weight, bias, y)
    check(y, x, weight, bias)


def test_two_parts_are_added_and_results_may_be_wide(grids, tiles):
    x, weight, _ = case(grids, 6, 200, 70, torch.bfloat16)
    y = torch.full((3, 70), float("nan"), device=grids)
    skinny_linear(x, weight, None, y, parts=2)
    check(y, torch.cat([x[:3], x[3:]], 1), torch.cat([weight, weight], 1))


def test_a_row_is_the_same_among_1_2_13_or_64(grids, tiles):
    """Bit for bit."""
    x, weight, bias = case(grids, 64, 392, 100, torch.bfloat16, with_bias=True)
    expected = torch.empty(64, 100, dtype=torch.bfloat16, device=grids)
    skinny_linear(x, weight, bias, expected)
    for rows in (1, 2, 13):
        y = torch.full((rows, 100), float("nan"), dtype=torch.bfloat16, device=grids)
        skinny_linear(x[20 : 20 + rows], weight, bias, y)
        assert torch.equal(y, expected[20 : 20 + rows])


def test_launches_leave_their_counters_as_they_were(grids):
    x, weight, _ = case(grids, 5, 512, 64, torch.float16)
    results = [torch.full((5, 64), float("nan"), dtype=torch.float16, device=grids) for _ in range(3)]
    for y in results:
        skinny_linear(x, weight, None, y)
    assert all(torch.equal(y, results[0]) for y in results)


def test_no_rows_and_wrong_arguments(grids):
    x, weight, bias = case(grids, 4, 64, 32, torch.bfloat16, with_bias=True)
    y = torch.zeros(4, 32, dtype=torch.bfloat16, device=grids)
    skinny_linear(x[:0], weight, bias, y[:0])
    with pytest.raises(KernelError, match="do not fit"):
        skinny_linear(x[:, :56], weight, bias, y)
    with pytest.raises(KernelError, match=r"no kernel for x torch\.bfloat16, weight torch\.float16"):
        skinny_linear(x, weight.half(), None, y)
    with pytest.raises(KernelError, match="bias is"):
        skinny_linear(x, weight, bias[:8], y)
    wide = torch.zeros(65, 64, dtype=torch.bfloat16, device=grids)
    with pytest.raises(KernelError, match="65 rows; this GPU's kernel takes 1 to 64"):
        skinny_linear(wide, weight, None, torch.zeros(65, 32, dtype=torch.bfloat16, device=grids))
    with pytest.raises(KernelError, match="aligned to 16 bytes"):
        skinny_linear(x[:, 4:60], weight[:, 4:60], None, y)


def test_smaller_gpus_take_fewer_rows(monkeypatch):
    monkeypatch.setattr("plugins.linear.skinny.capability", lambda device: (8, 9))
    assert skinny.most_rows(torch.device("cpu")) == 32


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 8, 13, 64])
@pytest.mark.parametrize(("out", "width"), [(960, 576), (576, 1536), (3072, 2048), (6144, 4096), (49152, 576)])
def test_layers_of_models(out, width, rows):
    x, weight, _ = case("cuda", rows, width, out, torch.bfloat16)
    y = torch.full((rows, out), float("nan"), dtype=torch.bfloat16, device="cuda")
    skinny_linear(x, weight, None, y)
    check(y, x, weight)
