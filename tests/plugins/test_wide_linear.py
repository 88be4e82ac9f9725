"""One launch of a wide layer, each kind of it: against float64, and rows that do not depend on each other."""

import pytest
import torch

from plugins.layer_step.layout import is_wide
from plugins.layer_step.params import LINEAR_MODES
from plugins.layer_step.wide import BLOCK_BYTES, MOST_CLUSTER, WHOLE, Wide, num_stages, shared_bytes, wide_cut
from tests.plugins.test_layer_linear import (
    EPS,
    MODEL,
    Layer,
    check,
    check_gated,
    check_logits,
    check_residual,
    normal,
)


@pytest.fixture(params=[2, 8])
def cluster(request):
    return request.param


@pytest.mark.parametrize(("rows", "outputs", "columns"), [(1, 16, 512), (5, 144, 512), (17, 4112, 640), (64, 128, 576)])
def test_logits_add_two_parts(kernel_device, rows, outputs, columns):
    check_logits(Layer(kernel_device, Wide("logits"), outputs, columns), rows)


def test_the_gate_takes_any_size(kernel_device):
    """silu(-200) is 0 and silu(200) is 200, whatever the exponential overflows to; the last tile is not whole."""
    rows, half, columns = 12, 104, 512
    layer = Layer(kernel_device, Wide("gated"), 2 * half, columns)
    x = normal(rows, columns).mul(16).to(kernel_device)
    squares = normal(rows, 37, dtype=torch.float32).square().add(columns / 37).to(kernel_device)
    y = layer.empty(rows, half, torch.bfloat16)
    layer.run("gated", x, y, squares=squares, num_squares=37)
    factor = (squares.cpu().double().sum(1, keepdim=True) / columns + EPS).rsqrt()
    exact, slack = layer.product(x)
    exact, slack = exact * factor, (slack + exact.abs() * 2.0**-20) * factor
    assert exact[:, :half].abs().max() > 200
    check_gated(y, exact, slack)


def test_the_stream_and_what_the_next_norm_needs(kernel_device, cluster):
    check_residual(Layer(kernel_device, Wide("residual", cluster), outputs=272, columns=512), rows=19)


@pytest.mark.parametrize(("head_dim", "has_norms"), [(32, True), (64, False), (64, True), (128, False), (128, True)])
def test_heads_are_normed_rotated_and_cached(kernel_device, cluster, head_dim, has_norms):
    """The row's norm comes before the bias, the head's after; squares are in parts, one of them alone."""
    rows, columns, heads, kv_heads, block_size = 11, 512, 3, 1, 4
    layer = Layer(kernel_device, Wide("qkv", cluster), (heads + 2 * kv_heads) * head_dim, columns)
    x, bias = normal(rows, columns).mul(0.1).to(kernel_device), normal(len(layer.weight)).to(kernel_device)
    squares = normal(rows, 37, dtype=torch.float32).square().to(kernel_device)
    half_cos, half_sin = (normal(rows, head_dim // 2, seed=seed).to(kernel_device) for seed in (2, 3))
    cos, sin = torch.cat([half_cos, half_cos], 1), torch.cat([-half_sin, half_sin], 1)
    norms = [normal(head_dim, seed=seed).to(kernel_device) for seed in (4, 5)]
    places = torch.randperm(4 * block_size, generator=torch.Generator().manual_seed(0))[:rows].to(kernel_device)
    query = layer.empty(rows, heads * head_dim, torch.bfloat16)
    caches = [layer.empty(4 * block_size, head_dim, torch.bfloat16) for _ in range(2)]
    fields = {"q_norm": norms[0], "k_norm": norms[1]} if has_norms else {}
    layer.run(
        "qkv", x, query, squares=squares, num_squares=37, bias=bias, cos=cos, sin=sin, kv_rows=places,
        k_cache=caches[0], v_cache=caches[1], num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        block_size=block_size, **fields,
    )  # fmt: skip
    exact, slack = layer.product(x)
    factor = (squares.cpu().double().sum(1, keepdim=True) / columns + EPS).rsqrt()
    exact, slack = exact * factor + bias.cpu().double(), (slack + exact.abs() * 2.0**-20) * factor
    exact, slack = (part.view(rows, heads + 2 * kv_heads, head_dim) for part in (exact, slack))
    keys, wide = exact[:, : heads + kv_heads], slack[:, : heads + kv_heads].amax() * 4 + 1e-6
    if has_norms:
        weights = (
            torch.cat([norms[0].expand(heads, -1), norms[1].expand(kv_heads, -1)]).cpu().double().view(-1, head_dim)
        )
        keys = keys * (keys.square().mean(-1, keepdim=True) + EPS).rsqrt() * weights
        wide = wide * 4
    swapped = keys.roll(head_dim // 2, -1)
    turned = keys * cos.cpu().double()[:, None] + swapped * sin.cpu().double()[:, None]
    # Both of a rotation's products are of one size, whatever is left of their sum.
    terms = keys.abs() * cos.cpu().double().abs()[:, None] + swapped.abs() * sin.cpu().double().abs()[:, None]
    room = terms * 2.0**-20 + wide
    check(query, turned[:, :heads].flatten(1), room[:, :heads].flatten(1))
    check(caches[0][places], turned[:, heads], room[:, heads])
    check(caches[1][places], exact[:, -1], slack[:, -1])


def test_a_row_is_the_same_among_1_2_13_or_64(kernel_device, cluster):
    """Bit for bit, though each number of rows has its kernels."""
    outputs, columns = 144, 640
    cut = Wide("residual", cluster)
    own, added = Layer(kernel_device, Wide("logits"), outputs, columns), Layer(kernel_device, cut, outputs, columns)
    x, norm = normal(64, columns).to(kernel_device), normal(outputs).to(kernel_device)

    def results(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, scaled = own.empty(len(x), outputs, torch.float32), own.empty(len(x), outputs, torch.bfloat16)
        own.run("logits", x, logits)
        hidden, squares = torch.zeros_like(logits), own.empty(len(x), cut.squares(outputs), torch.float32)
        added.run("residual", x, scaled, hidden=hidden, norm=norm, squares_out=squares)
        return logits, hidden

    expected = results(x)
    for rows in (1, 2, 13, 25):
        for ours, all_rows in zip(results(x[20 : 20 + rows]), expected, strict=True):
            assert torch.equal(ours, all_rows[20 : 20 + rows])


@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_blocks_of_a_models_layers_fit_a_processor(rows):
    for name, (outputs, columns) in MODEL.linears.items():
        mode = LINEAR_MODES[name]
        assert is_wide(outputs, columns, mode, MODEL.head_dim)
        cut, parts = wide_cut(outputs, columns, mode), 2 if name == "head" else 1
        stages = num_stages(cut, rows, parts, columns // 64 // cut.cluster)
        assert stages >= 2
        assert cut.cluster in (1, 2, 4, MOST_CLUSTER)
        assert shared_bytes(cut, rows, parts, stages) <= BLOCK_BYTES[mode] <= WHOLE
