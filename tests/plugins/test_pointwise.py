"""RMSNorm, SwiGLU and the packed linear layers against their references."""

import pytest
import torch

from plugins.linear import pack_linear
from plugins.residual_rms_norm import residual_rms_norm
from plugins.residual_rms_norm.reference import residual_rms_norm_reference
from plugins.rms_norm import rms_norm
from plugins.rms_norm.reference import rms_norm_reference
from plugins.silu_mul import silu_mul
from plugins.silu_mul.reference import silu_mul_reference

# One rounding of an output of size about 4: 2^-52, 2^-23 and 2^-8 of it, with room for the sums inside.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rms_norm_equals_its_formula(rows, dtype):
    x, weight = torch.randn(rows, 48, dtype=dtype), torch.rand(48, dtype=dtype)
    out = rms_norm(x, weight, 1e-5, torch.full_like(x, float("nan")))
    assert torch.allclose(out.double(), rms_norm_reference(x, weight, 1e-5), rtol=0, atol=TOLERANCE[dtype])


def test_rms_norm_of_a_wide_residual_gives_the_weights_dtype():
    x, weight = torch.randn(5, 48) * 30, torch.rand(48, dtype=torch.bfloat16)
    out = rms_norm(x, weight, 1e-5, torch.full((5, 48), float("nan"), dtype=torch.bfloat16))
    expected = rms_norm_reference(x, weight, 1e-5)
    assert torch.allclose(out.double(), expected, rtol=0, atol=TOLERANCE[torch.bfloat16])


def test_rms_norm_of_zeros_is_zero():
    out = rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-5, torch.full((2, 8), float("nan")))
    assert torch.equal(out, torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_residual_rms_norm_is_the_sum_and_then_the_norm(rows, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    hidden, delta = torch.randn(rows, 48, dtype=wide) * 30, torch.randn(rows, 48, dtype=dtype)
    weight, apart = torch.rand(48, dtype=dtype), hidden + delta
    total, normed = residual_rms_norm_reference(hidden, delta, weight, 1e-5)
    out = residual_rms_norm(hidden, delta, weight, 1e-5, torch.full_like(delta, float("nan")))
    assert torch.equal(hidden, apart)
    assert torch.equal(out, rms_norm(apart, weight, 1e-5, torch.empty_like(delta)))
    assert torch.allclose(hidden.double(), total, rtol=1e-6, atol=0)
    assert torch.allclose(out.double(), normed, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_silu_mul_equals_its_formula(rows, dtype):
    fused = torch.randn(rows, 64, dtype=dtype)
    out = silu_mul(fused, torch.full((rows, 32), float("nan"), dtype=dtype))
    assert torch.allclose(out.double(), silu_mul_reference(fused), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    # 96 products of size about 1; bfloat16 rounds the sum, of size up to 64, to 8 bits and float16 to 11
    [
        ("torch", torch.float64, 1e-12),
        ("onednn", torch.float32, 1e-4),
        ("onednn", torch.bfloat16, 0.13),
        ("onednn_float32", torch.float32, 1e-4),
        ("onednn_float32", torch.bfloat16, 0.13),
        ("onednn_float32", torch.float16, 0.016),
    ],
)
def test_packed_linear_equals_the_product(kind, dtype, tolerance, rows, with_bias):
    weight, x = torch.randn(40, 96, dtype=dtype), torch.randn(rows, 96, dtype=dtype)
    bias = torch.randn(40, dtype=dtype) if with_bias else None
    packed = pack_linear(kind, weight, bias)
    expected = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    assert (packed(x).double() - expected).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_widened_linear_is_the_float32_product_rounded_once(dtype):
    weight, x, bias = (torch.randn(shape, dtype=dtype) for shape in [(40, 96), (64, 96), (40,)])
    out = pack_linear("onednn_float32", weight, bias)(x)
    exact = x.double() @ weight.double().T + bias.double()
    assert out.dtype == dtype
    # half a unit in the last place of each result, and what a float32 sum of 96 products may be off by
    assert ((out.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-4).all()


@pytest.mark.parametrize("kind", ["onednn", "onednn_float32"])
def test_onednn_refuses_float64(kind):
    with pytest.raises(ValueError, match=r"float64; use 'torch'"):
        pack_linear(kind, torch.randn(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["onednn", "onednn_float32"])
def test_onednn_is_refused_where_torch_has_none(kind, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"built without oneDNN; use the linear implementation 'torch'"):
        pack_linear(kind, torch.randn(4, 4, dtype=torch.bfloat16))
