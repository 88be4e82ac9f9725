"""The kernels of RMSNorm, with and without the residual, and SwiGLU against float64."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.residual_rms_norm.cuda import residual_rms_norm_cuda
from plugins.residual_rms_norm.reference import residual_rms_norm_reference
from plugins.rms_norm.cuda import rms_norm_cuda
from plugins.rms_norm.reference import rms_norm_reference
from plugins.silu_mul.cuda import silu_mul_cuda
from plugins.silu_mul.reference import silu_mul_reference

# An output is rounded once, by half a unit in its last place (relative), after float32 arithmetic: sums of up to 8192
# squares in a tree of depth below 40, and functions off by 2^-22.
RELATIVE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 0.0}
FLOAT32 = 40 * 2.0**-24 + 2.0**-21
HALVES = [torch.bfloat16, torch.float16]
ROWS_AND_WIDTHS = [(1, 8), (3, 72), (2, 576), (5, 2056)]


def assert_rounded(got: torch.Tensor, expected: torch.Tensor) -> None:
    """`got` is within one rounding of the float64 `expected`."""
    smallest = torch.finfo(got.dtype).smallest_normal
    allowed = expected.abs() * (RELATIVE[got.dtype] * 1.01 + FLOAT32) + smallest
    assert ((got.double().cpu() - expected).abs() <= allowed).all()  # NaN fails


def strided(rows: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Rows within longer ones, which are poisoned elsewhere."""
    wide = torch.full((rows, width + 16), float("nan"), dtype=dtype, device=device)
    wide[:, 8 : 8 + width] = torch.randn(rows, width) * 3
    return wide[:, 8 : 8 + width]


@pytest.mark.parametrize(("rows", "width"), ROWS_AND_WIDTHS)
@pytest.mark.parametrize("element", HALVES, ids=str)
@pytest.mark.parametrize("form", ["narrow", "wide", "wide out", "float"])
def test_rms_norm_is_its_formula_rounded_once(kernel_device, form, element, rows, width):
    x = strided(rows, width, element if form == "narrow" else torch.float32, kernel_device)
    weight_dtype = torch.float32 if form == "float" else element
    weight = (torch.rand(width) + 0.5).to(kernel_device, weight_dtype)
    out_dtype = torch.float32 if form in ("wide out", "float") else element
    out = torch.full((rows, width), float("nan"), dtype=out_dtype, device=kernel_device)
    rms_norm_cuda(x, weight, 1e-5, out)
    assert_rounded(out, rms_norm_reference(x.cpu(), weight.cpu(), 1e-5))


@pytest.mark.parametrize(("rows", "width"), ROWS_AND_WIDTHS)
@pytest.mark.parametrize("element", HALVES, ids=str)
@pytest.mark.parametrize("out_dtype", [None, torch.float32], ids=["narrow", "wide"])
def test_residual_rms_norm_adds_and_normalises(kernel_device, out_dtype, element, rows, width):
    hidden = torch.randn(rows, width, device=kernel_device) * 30
    delta = strided(rows, width, element, kernel_device)
    weight = (torch.rand(width) + 0.5).to(kernel_device, out_dtype or element)
    total, normed = residual_rms_norm_reference(hidden.cpu(), delta.cpu(), weight.cpu(), 1e-5)
    out = torch.full((rows, width), float("nan"), dtype=out_dtype or element, device=kernel_device)
    residual_rms_norm_cuda(hidden, delta, weight, 1e-5, out)
    assert torch.equal(hidden.cpu(), total.float())
    assert_rounded(out, normed)


@pytest.mark.parametrize(("rows", "width"), [*ROWS_AND_WIDTHS, (70, 64)])
@pytest.mark.parametrize("element", HALVES, ids=str)
def test_silu_mul_is_its_formula_rounded_once(kernel_device, element, rows, width):
    fused = strided(rows, 2 * width, element, kernel_device)
    fused[0, :8] = torch.tensor([0.0, -0.0, 200.0, -200.0, 80.0, -80.0, 1e-3, -1e-3])
    out = torch.full((rows, width), float("nan"), dtype=element, device=kernel_device)
    silu_mul_cuda(fused, out)
    assert_rounded(out, silu_mul_reference(fused.cpu()))


def test_no_rows_are_no_launch(kernel_device):
    empty = torch.empty(0, 64, device=kernel_device)
    weight = torch.ones(64, dtype=torch.bfloat16, device=kernel_device)
    rms_norm_cuda(empty, weight, 1e-5, empty.bfloat16())
    silu_mul_cuda(empty.bfloat16(), empty.bfloat16()[:, :32].contiguous())


def test_a_row_is_the_same_among_others(kernel_device):
    x = torch.randn(13, 584, device=kernel_device)
    weight = torch.rand(584, device=kernel_device).bfloat16()
    together, alone = (torch.empty(13, 584, dtype=torch.bfloat16, device=kernel_device) for _ in range(2))
    rms_norm_cuda(x, weight, 1e-5, together)
    for row in range(13):
        rms_norm_cuda(x[row : row + 1], weight, 1e-5, alone[row : row + 1])
    assert torch.equal(together, alone)


def test_rows_that_the_kernels_cannot_take_are_refused(kernel_device):
    x, weight = torch.zeros(2, 20, device=kernel_device), torch.zeros(20, device=kernel_device).bfloat16()
    with pytest.raises(KernelError, match="multiples of 16 bytes"):
        rms_norm_cuda(x, weight, 1e-5, x.bfloat16())
    x, weight = torch.zeros(2, 16, device=kernel_device), torch.zeros(16, device=kernel_device).bfloat16()
    with pytest.raises(KernelError, match=r"no kernel for rows of torch\.float32"):
        rms_norm_cuda(x, weight, 1e-5, x.half())
    with pytest.raises(KernelError, match="do not fit"):
        rms_norm_cuda(x, weight[:8], 1e-5, x.bfloat16())
    wide = torch.zeros(2, 36, device=kernel_device).bfloat16()
    with pytest.raises(KernelError, match="aligned to 16 bytes"):
        silu_mul_cuda(wide[:, 4:], torch.zeros(2, 16, device=kernel_device).bfloat16())
    with pytest.raises(KernelError, match=r"fused is \(2, 36\)"):
        silu_mul_cuda(wide, torch.zeros(2, 16, device=kernel_device).bfloat16())
