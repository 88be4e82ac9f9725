"""The launches of small models, each alone: against float64, and rows the same in any cut and among any number."""

import pytest
import torch

from plugins.layer_step.params import LayerLinearParams
from plugins.layer_step.small import SmallCut, is_small, run_small
from plugins.layer_step.weights import LayerSpec
from tests.plugins.test_layer_linear import EPS, check, check_gated, check_stream, normal, walled

# Tiles that are no multiple of a block's, two row groups and more, and warps with one step and with two.
SPEC = LayerSpec(192, 1, 3, 1, 64, 704, 130, EPS, True, False, None)
CUTS = {
    "qkv": [SmallCut(1, 8), SmallCut(1, 16)],
    "dense": [SmallCut(1, 8), SmallCut(1, 16)],
    "gate_up": [SmallCut(2, 8), SmallCut(3, 8), SmallCut(3, 16)],
    "down": [SmallCut(1, 8), SmallCut(1, 16)],
}
CASES = [
    pytest.param(layer, cut, id=f"{layer} {cut.tiles} x {cut.rows}") for layer, cuts in CUTS.items() for cut in cuts
]


class Case:
    """A layer's tensors for some rows; `run` returns what it wrote."""

    def __init__(self, device: str, layer: str, rows: int) -> None:
        self.device, self.layer, self.rows = device, layer, rows
        self.outputs, self.columns = SPEC.linears[layer]
        self.weight = walled(normal(self.outputs, self.columns), device)
        self.x = normal(64, self.columns)[:rows].clone().to(device)
        self.squares = normal(64, 9, dtype=torch.float32).square().mul(30)[:rows].clone().to(device)
        self.bias, self.norm = normal(self.outputs, seed=1).to(device), normal(self.outputs, seed=2).to(device)
        self.hidden = normal(64, SPEC.hidden_size, dtype=torch.float32, seed=3).mul(100)[:rows].clone().to(device)
        self.cos, self.sin = (normal(64, SPEC.head_dim, seed=seed)[:rows].clone().to(device) for seed in (4, 5))
        self.places = (torch.arange(rows) * 3 % 64).to(device)  # of 64 in the cache's only block

    def run(self) -> dict[str, torch.Tensor]:
        width = {"gate_up": self.outputs // 2, "qkv": SPEC.num_heads * SPEC.head_dim}.get(self.layer, self.outputs)
        y, parts = self._empty(self.rows, width), self._empty(self.rows, self.outputs // 16, dtype=torch.float32)
        keys, values = (self._empty(SPEC.num_kv_heads, 64, SPEC.head_dim) for _ in range(2))
        hidden = self.hidden.clone()
        params = LayerLinearParams(
            x=self.x.data_ptr(), weight=self.weight.data_ptr(), y=y.data_ptr(), rows=self.rows, columns=self.columns,
            outputs=self.outputs, bias=self.bias.data_ptr(), squares=self.squares.data_ptr(), num_squares=9,
            hidden=hidden.data_ptr(), norm=self.norm.data_ptr(), squares_out=parts.data_ptr(), cos=self.cos.data_ptr(),
            sin=self.sin.data_ptr(), kv_rows=self.places.data_ptr(), k_cache=keys.data_ptr(), v_cache=values.data_ptr(),
            block_size=64, eps=EPS,
        )  # fmt: skip
        run_small(self.layer, params, SPEC, torch.bfloat16)
        if self.layer == "qkv":
            return {"y": y, "keys": keys[:, self.places], "values": values[:, self.places]}
        return {"y": y} if self.layer == "gate_up" else {"y": y, "hidden": hidden, "squares": parts}

    def product(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact, and what float32 sums may be off by; normed where the layer's rows are."""
        x, weight = self.x.cpu().double(), self.weight.cpu().double()
        exact, slack = x @ weight.T, x.abs() @ weight.abs().T * self.columns * 2.0**-24
        if self.layer in ("dense", "down"):
            return exact, slack
        factor = (self.squares.cpu().double().sum(1, keepdim=True) / SPEC.hidden_size + EPS).rsqrt()
        return exact * factor, (slack + exact.abs() * 2.0**-21) * factor

    def _empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=self.device)


@pytest.mark.parametrize("rows", [3, 19])
@pytest.mark.parametrize(("layer", "cut"), CASES)
def test_equals_the_reference(kernel_device, layer, cut, rows, monkeypatch):
    monkeypatch.setattr("plugins.layer_step.small.small_cut", lambda layer, rows: cut)
    case = Case(kernel_device, layer, rows)
    result = case.run()
    exact, slack = case.product()
    if layer == "gate_up":
        check_gated(result["y"], exact, slack)
    elif layer == "qkv":
        check_heads(case, result, exact, slack)
    else:
        check_stream(**result, norm=case.norm, exact=case.hidden.cpu().double() + exact, slack=slack)


def check_heads(case: Case, result: dict[str, torch.Tensor], exact: torch.Tensor, slack: torch.Tensor) -> None:
    """Queries and keys turned by their angles (sin has its first half negated), and values as they are."""
    heads = (exact + case.bias.cpu().double()).view(case.rows, -1, SPEC.head_dim)
    cos, sin = (angle.cpu().double().unsqueeze(1) for angle in (case.cos, case.sin))
    half = SPEC.head_dim // 2
    sin = torch.cat([-sin[..., half:], sin[..., half:]], -1)
    cos = torch.cat([cos[..., :half], cos[..., :half]], -1)
    turned = heads * cos + heads.roll(half, -1) * sin
    off = slack.view(heads.shape) + heads.abs() * 2.0**-21
    off = off * (1 + cos.abs()) + off.roll(half, -1) * sin.abs()
    sizes = [SPEC.num_heads, SPEC.num_kv_heads, SPEC.num_kv_heads]
    (queries, keys, _), (_, _, values) = turned.split(sizes, 1), heads.split(sizes, 1)
    queries_off, keys_off, values_off = off.split(sizes, 1)
    check(result["y"].view(queries.shape), queries, queries_off)
    check(result["keys"].transpose(0, 1), keys, keys_off)
    check(result["values"].transpose(0, 1), values, values_off)


@pytest.mark.parametrize("layer", CUTS)
def test_a_row_is_the_same_in_every_cut_among_any_number(kernel_device, layer, monkeypatch):
    """Bit for bit."""
    expected: dict[str, torch.Tensor] = {}
    for cut in CUTS[layer]:
        monkeypatch.setattr("plugins.layer_step.small.small_cut", lambda layer, rows, cut=cut: cut)
        for rows in (33, 1, 10):
            result = Case(kernel_device, layer, rows).run()
            if layer == "qkv":
                result = {name: t if name == "y" else t.transpose(0, 1).contiguous() for name, t in result.items()}
            expected = expected or result
            assert all(torch.equal(t, expected[name][:rows]) for name, t in result.items())


def test_which_models_are_small():
    assert is_small(SPEC)
    assert is_small(LayerSpec(576, 30, 9, 3, 64, 1536, 49152, EPS, False, False, None))
    assert not is_small(SPEC._replace(qk_norm=True))
    assert not is_small(LayerSpec(2048, 16, 32, 8, 64, 8192, 128256, EPS, False, False, None))
