"""Steps of models with larger heads, against the reference: the launch of a whole step, and the launches of a layer."""

import pytest
import torch

from plugins.decoder_step.plan import supports
from plugins.decoder_step.reference import decoder_step_reference
from plugins.decoder_step.weights import StepSpec
from plugins.layer_step.layout import Tiling
from tests.plugins import test_decoder_step as whole_step
from tests.plugins import test_layer_step as layer_steps
from tests.plugins.test_decoder_step import TOLERANCE, TREE, Case, Request, distance, implementation, random_weights
from tests.plugins.test_layer_step import check, step_device

__all__ = ["implementation", "step_device"]  # fixtures
DTYPES = {torch.bfloat16: TOLERANCE, torch.float16: TOLERANCE / 4}
REQUESTS = [Request(40), Request(20, 9, TREE)]


def spec_of(head_dim: int, qk_norm: bool, hidden_size: int) -> StepSpec:
    return StepSpec(hidden_size, 2, 2, 1, head_dim, 96, 130, 1e-6, False, qk_norm, None)


@pytest.mark.parametrize(("head_dim", "qk_norm"), [(64, True), (96, False), (128, True), (256, False)])
def test_a_whole_step_of_larger_heads(head_dim, qk_norm, implementation):
    spec = spec_of(head_dim, qk_norm, 64)
    if refusal := supports(spec, torch.bfloat16, 16):
        pytest.skip(refusal)
    case, weights = Case(spec, REQUESTS), random_weights(spec)
    old = case.cache(spec)
    cache, expected_cache = old.to(implementation.device), old.double()
    expected = decoder_step_reference(
        weights, case.token_ids, case.positions, case.starts, case.contexts, case.tables, case.visible, expected_cache
    )
    for ours, exact in zip(whole_step.run(implementation(weights, cache, 16), case, spec), expected, strict=True):
        assert distance(ours, exact) < TOLERANCE
    written = ~expected_cache.isnan()
    assert torch.equal(cache.cpu().isnan(), ~written)
    assert distance(cache.cpu()[written], expected_cache[written]) < TOLERANCE


@pytest.mark.parametrize("step_device", [Tiling(2, 2)], ids=str, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "qk_norm"), [(64, True), (96, False), (128, True), (128, False), (256, False)])
def test_layers_of_larger_heads(step_device, head_dim, qk_norm, dtype):
    actual, expected = layer_steps.run(spec_of(head_dim, qk_norm, 256), REQUESTS, step_device, dtype)
    for ours, exact in zip(actual, expected, strict=True):
        check(ours, exact, DTYPES[dtype])
