"""The launches of a step over few rows against the decoder's float64 reference: emulated, and on a GPU."""

import pytest
import torch

from plugins.decoder_step.reference import decoder_step_reference
from plugins.decoder_step.weights import StepSpec, StepWeights
from plugins.layer_step import cuda as layer_step
from plugins.layer_step.layout import Tiling
from plugins.layer_step.weights import LayerSpec, LayerTensors, LayerWeights
from tests.plugins.test_decoder_step import PLAIN, TOLERANCE, TREE, WINDOW, Case, Request, random_weights

BIAS = StepSpec(96, 3, 6, 2, 32, 160, 515, 1e-6, True, False, None)
NORMS = StepSpec(96, 2, 4, 2, 32, 160, 130, 1e-6, True, True, None)  # of heads
WIDE_NORMS = StepSpec(128, 1, 2, 1, 64, 96, 130, 1e-6, False, True, None)
WIDE = StepSpec(128, 2, 4, 2, 64, 160, 528, 1e-6, True, False, None)  # down's columns are for the small launches
WIDE_NORMED = StepSpec(128, 2, 2, 1, 128, 192, 144, 1e-6, False, True, None)
NARROW_NORMS = StepSpec(64, 2, 4, 2, 16, 96, 130, 1e-6, False, True, None)


def layer_weights(weights: StepWeights, device: str, dtype: torch.dtype) -> LayerWeights:
    def tensors(layer) -> LayerTensors:
        fields = {name: getattr(layer, name) for name in LayerTensors._fields if name != "gate_up"}
        fields["gate_up"] = torch.cat([layer.fc, layer.gate])
        return LayerTensors(**{name: None if t is None else t.to(device, dtype) for name, t in fields.items()})

    final_norm = weights.final_norm.float().to(device)
    embedding, *rest = (t.to(device, dtype) for t in (weights.embedding, weights.head, weights.cos, weights.sin))
    layers = [tensors(layer) for layer in weights.layers]
    return LayerWeights(LayerSpec(*weights.spec), layers, embedding, final_norm, *rest)


@pytest.fixture(params=["small", Tiling(1, 1), Tiling(2, 2), Tiling(8, 4)], ids=str)
def step_device(request, kernel_device, monkeypatch):
    """Through the kernels of small models, where they take this one, and through the others so cut."""
    if kernel_device == "cpu":
        monkeypatch.setattr("plugins.layer_step.cuda.processors", lambda device: 4)
    if request.param == "small":
        return kernel_device
    monkeypatch.setattr("plugins.layer_step.cuda.is_small", lambda spec: False)
    row_warps, cluster = request.param

    def tiling(outputs: int, columns: int) -> Tiling:
        return Tiling(row_warps, min(cluster, 2 if columns < 128 else 4))

    monkeypatch.setattr("plugins.layer_step.cuda.tiling", tiling)
    return kernel_device


def run(spec: StepSpec, requests: list[Request], device: str, dtype: torch.dtype = torch.bfloat16, stream: float = 1.0):
    """Logits, hidden and cache, and the reference's; the residual stream begins `stream` times as large."""
    weights, case = random_weights(spec), Case(spec, requests)
    weights = weights._replace(embedding=weights.embedding * stream)
    cache = case.cache(spec).to(dtype)
    expected_cache = cache.double()
    expected = decoder_step_reference(
        weights, case.token_ids, case.positions, case.starts, case.contexts, case.tables, case.visible, expected_cache
    )
    cache = cache.to(device)
    token_ids, positions, starts, contexts, tables, ancestors = case.batch(device)
    first = [context - request.num_rows for context, request in zip(case.contexts, requests, strict=True)]
    places = [start + row for start, request in zip(first, requests, strict=True) for row in range(request.num_rows)]
    step = layer_step.LayerStep(layer_weights(weights, device, dtype), cache)
    results = step(token_ids, positions, torch.tensor(places, device=device), starts, contexts, tables, ancestors)
    return [*(result.cpu() for result in results), cache.cpu()], [*expected, expected_cache]


def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert torch.equal(actual.isnan(), expected.isnan())
    assert (actual.double() - expected).nan_to_num().norm() <= tolerance * expected.nan_to_num().norm()


@pytest.mark.parametrize(
    ("spec", "requests"),
    [
        (PLAIN, [Request(20), Request(1), Request(35)]),
        (BIAS, [Request(19, 9, TREE), Request(5, 2)]),
        (WINDOW, [Request(90), Request(70, 9, TREE)]),
        (NORMS, [Request(19, 9, TREE), Request(5, 2)]),
        (WIDE_NORMS, [Request(50, 40)]),
        (NARROW_NORMS, [Request(19, 9, TREE), Request(5, 2)]),
    ],
    ids=["decode", "a tree and bias", "a window", "norms", "wide norms, two items a thread", "norms in a launch more"],
)
def test_equals_the_reference(step_device, spec, requests):
    if step_device == "cuda" and spec.head_dim < 64:
        pytest.skip("attention's kernels take head_dim 64 and more")
    actual, expected = run(spec, requests, step_device)
    for ours, exact in zip(actual, expected, strict=True):
        check(ours, exact)


@pytest.mark.parametrize("stream", [1e-3, 1.0, 1.5e4])
def test_float16_takes_a_stream_of_any_size(step_device, stream):
    """Times the norm's weight it would exceed float16 at the end, and lose bits at the start."""
    actual, expected = run(WINDOW, [Request(30), Request(20, 9, TREE)], step_device, torch.float16, stream)
    for ours, exact in zip(actual, expected, strict=True):
        check(ours, exact, TOLERANCE / 4)


@pytest.mark.parametrize(
    ("spec", "dtype", "stream"),
    [
        (WIDE, torch.bfloat16, 1.0),
        (WIDE, torch.float16, 1.5e4),
        (WIDE_NORMED, torch.bfloat16, 1.0),
    ],
    ids=["bias", "float16", "norms"],
)
def test_wide_layers_equal_the_reference(kernel_device, monkeypatch, spec, dtype, stream):
    if kernel_device == "cpu":
        monkeypatch.setattr("plugins.layer_step.cuda.processors", lambda device: 4)
    monkeypatch.setattr("plugins.layer_step.layout.SMALL_WEIGHTS", 0)
    actual, expected = run(spec, [Request(19, 9, TREE), Request(5, 2)], kernel_device, dtype, stream)
    for ours, exact in zip(actual, expected, strict=True):
        check(ours, exact)
