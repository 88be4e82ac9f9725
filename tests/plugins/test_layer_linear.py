"""One launch of a layer over few rows, each kind of it: against float64, and rows that do not depend on each other."""

import pytest
import torch

from plugins.layer_step.cuda import run_linear
from plugins.layer_step.layout import Tiling, block_rows, clusters, shared_bytes, supports, tiling
from plugins.layer_step.params import MODES, LayerLinearParams
from plugins.layer_step.weights import LayerSpec
from plugins.layer_step.wide import Wide, run_wide

RELATIVE = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}  # of one rounding
EPS = 1e-5


@pytest.fixture(params=[False, True], ids=["rows together", "rows apart"], autouse=True)
def _groups(request, monkeypatch):
    if request.param:
        monkeypatch.setattr("plugins.layer_step.cuda.block_rows", lambda *sizes: 8)


@pytest.fixture(params=[Tiling(1, 1), Tiling(1, 4), Tiling(2, 2), Tiling(8, 1), Tiling(8, 8)], ids=str)
def cut(request):
    return request.param


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def walled(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor between rows of poison."""
    padded = torch.full((len(tensor) + 6, *tensor.shape[1:]), float("nan"), dtype=tensor.dtype)
    padded[3:-3] = tensor
    return padded.to(device)[3:-3]


class Layer:
    """A layer's tensors, and its launch over rows of x."""

    def __init__(self, device: str, cut: Tiling | Wide, outputs: int, columns: int) -> None:
        self.device, self.cut = device, cut
        self.weight = walled(normal(outputs, columns), device)

    def run(self, mode: str, x: torch.Tensor, y: torch.Tensor, parts: int = 1, **fields: torch.Tensor | int) -> None:
        outputs, columns = self.weight.shape
        pointers = {name: f.data_ptr() if isinstance(f, torch.Tensor) else f for name, f in fields.items()}
        params = LayerLinearParams(
            x=x.data_ptr(), weight=self.weight.data_ptr(), y=y.data_ptr(), rows=len(x) // parts, columns=columns,
            outputs=outputs, mode=MODES.index(mode), parts=parts, eps=EPS, **pointers,
        )  # fmt: skip
        launch = run_wide if isinstance(self.cut, Wide) else run_linear
        launch(params, self.cut, x.dtype, 12)

    def product(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact, and what float32 sums in any order may be off by."""
        x, weight = x.cpu().double(), self.weight.cpu().double()
        return x @ weight.T, x.abs() @ weight.abs().T * x.shape[1] * 2.0**-24

    def empty(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows, width), float("nan"), dtype=dtype, device=self.device)


def check(y: torch.Tensor, exact: torch.Tensor, slack: torch.Tensor) -> None:
    assert ((y.cpu().double() - exact).abs() <= exact.abs() * RELATIVE[y.dtype] * 1.01 + slack + 1e-7).all()


def check_gated(y: torch.Tensor, exact: torch.Tensor, slack: torch.Tensor) -> None:
    """Against both branches of the MLP, one after the other as the weights have them."""
    (branch, gate), (branch_slack, gate_slack) = exact.chunk(2, 1), slack.chunk(2, 1)
    silu = torch.nn.functional.silu(branch)
    check(y, silu * gate, branch_slack * 1.1 * gate.abs() + silu.abs() * gate_slack + silu.abs() * 1e-5)


def check_stream(
    hidden: torch.Tensor,
    y: torch.Tensor,
    squares: torch.Tensor,
    norm: torch.Tensor,
    exact: torch.Tensor,
    slack: torch.Tensor,
) -> None:
    """The new stream, and what the next norm needs of the stream that was written."""
    check(hidden, exact, slack)
    check(y, hidden.cpu().double() * norm.cpu().double(), torch.zeros(()))
    check(squares.cpu().sum(1), hidden.cpu().double().square().sum(1), torch.zeros(()))


def check_logits(layer: Layer, rows: int) -> None:
    """Of rows in two parts."""
    outputs, columns = layer.weight.shape
    x = walled(normal(2 * rows, columns), layer.device)
    y = layer.empty(rows, outputs, torch.float32)
    layer.run("logits", x, y, parts=2)
    (high, high_slack), (low, low_slack) = layer.product(x[:rows]), layer.product(x[rows:])
    check(y, high + low, high_slack + low_slack)


def check_residual(layer: Layer, rows: int) -> None:
    """The stream is far larger than what is added, as late in a model."""
    outputs, columns = layer.weight.shape
    x, norm = normal(rows, columns).to(layer.device), normal(outputs, seed=1).to(layer.device)
    before = normal(rows, outputs, dtype=torch.float32).mul(1e4)
    hidden, y = before.clone().to(layer.device), layer.empty(rows, outputs, torch.bfloat16)
    squares = layer.empty(rows, layer.cut.squares(outputs), torch.float32)
    layer.run("residual", x, y, hidden=hidden, norm=norm, squares_out=squares)
    exact, slack = layer.product(x)
    check_stream(hidden, y, squares, norm, before.double() + exact, slack)


@pytest.mark.parametrize(("rows", "outputs", "columns"), [(1, 1, 256), (5, 130, 288), (17, 40, 256), (64, 264, 320)])
def test_logits_add_two_parts(kernel_device, cut, rows, outputs, columns):
    check_logits(Layer(kernel_device, cut, outputs, columns), rows)


def test_norm_and_bias(kernel_device, cut):
    """Squares in parts, one of them alone; the bias is not normed."""
    rows, outputs, columns = 9, 48, 256
    layer = Layer(kernel_device, cut, outputs, columns)
    x, bias = normal(rows, columns).to(kernel_device), normal(outputs).to(kernel_device)
    squares = normal(rows, 37, dtype=torch.float32).square().mul(10).to(kernel_device)
    y = layer.empty(rows, outputs, torch.bfloat16)
    layer.run("plain", x, y, squares=squares, num_squares=37, bias=bias)
    factor = (squares.cpu().double().sum(1, keepdim=True) / columns + EPS).rsqrt()
    exact, slack = layer.product(x)
    check(y, exact * factor + bias.cpu().double(), (slack + exact.abs() * 2.0**-21) * factor)


def test_the_gate_takes_any_size(kernel_device, cut):
    """silu(-200) is 0 and silu(200) is 200, whatever the exponential overflows to."""
    rows, half, columns = 12, 40, 256
    layer = Layer(kernel_device, cut, 2 * half, columns)
    x = normal(rows, columns).mul(16).to(kernel_device)
    y = layer.empty(rows, half, torch.bfloat16)
    layer.run("gated", x, y)
    exact, slack = layer.product(x)
    assert exact[:, :half].abs().max() > 200
    check_gated(y, exact, slack)


def test_the_stream_and_what_the_next_norm_needs(kernel_device, cut):
    check_residual(Layer(kernel_device, cut, outputs=144, columns=256), rows=19)


def test_a_row_is_the_same_among_1_2_13_or_64(kernel_device, cut):
    """Bit for bit, though each number of rows has its kernel."""
    outputs, columns = 80, 320
    layer = Layer(kernel_device, cut, outputs, columns)
    x = normal(64, columns).to(kernel_device)
    expected = layer.empty(64, outputs, torch.float32)
    layer.run("logits", x, expected)
    for rows in (1, 2, 13):
        y = layer.empty(rows, outputs, torch.float32)
        layer.run("logits", x[20 : 20 + rows], y)
        assert torch.equal(y, expected[20 : 20 + rows])


MODEL = LayerSpec(2048, 16, 32, 8, 64, 8192, 128256, 1e-5, False, False, None)


def test_what_fits_and_what_does_not():
    assert supports(MODEL, torch.bfloat16, 64) is None
    assert "float32" in str(supports(MODEL, torch.float32, 8))
    assert "down is 2048 x 8200" in str(supports(MODEL._replace(intermediate_size=8200), torch.bfloat16, 8))
    assert "of 102400 columns" in str(supports(MODEL._replace(intermediate_size=102400), torch.bfloat16, 64))


@pytest.mark.parametrize("rows", [5, 16, 33, 64])
def test_every_block_of_a_model_has_columns_and_tiles(rows):
    for outputs, columns in MODEL.linears.values():
        cut = tiling(outputs, columns)
        bucket = block_rows(cut, outputs, columns, rows)
        num_bytes = shared_bytes(cut, columns, bucket)
        assert columns // 32 >= cut.cluster
        assert 1 <= clusters(cut, outputs, bucket, num_bytes, -(-rows // bucket), 132) <= cut.tiles(outputs)
        assert num_bytes <= 227 << 10
