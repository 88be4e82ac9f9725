"""The conversion report is silent about a faithful conversion and loud about a wrong one."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.quality.conversion import conversion_report
from pipelines.quality.reference import ReferenceSizes, make_reference
from tests.pipelines.unified_models import tiny_model, write_checkpoint, write_source


def report_of(tmp_path, checkpoint):
    sizes = ReferenceSizes(num_tokens=8, top_k=8, text_window=32)
    quiet = lambda fraction, text: None  # noqa: E731
    reference = make_reference(checkpoint, [[5, 6, 7], [9]], list(range(60)), "float32", sizes, quiet)
    return conversion_report(write_source(tmp_path / "fetched", tiny_model()), checkpoint, reference, quiet)


def test_unrounded_conversion_is_exact(tmp_path):
    report = report_of(tmp_path, write_checkpoint(tmp_path / "c", tiny_model()))
    assert report.max_kl_nats == 0
    assert report.greedy_agreement == 1
    assert report.source_text_nll_nats == report.converted_text_nll_nats
    assert set(report.weight_errors.values()) == {0.0}
    assert {"self_attn.q_proj.weight", "mlp.up_proj.weight", "model.norm.weight"} <= set(report.weight_errors)


def test_rounded_conversion_shows_the_rounding(tmp_path):
    report = report_of(tmp_path, write_checkpoint(tmp_path / "c", tiny_model(), dtype="bfloat16"))
    assert 0 < report.mean_kl_nats < 1e-2
    # bf16 keeps 8 significant bits: no element is off by more than 2^-8 of itself, so no norm is.
    assert 0 < max(report.weight_errors.values()) < 2**-8


def test_swapped_gate_and_up_are_seen(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "c", tiny_model())
    tensors = load_file(checkpoint.weights_path)
    fc, gate = "transformer.layers.0.mlp.fc.weight", "transformer.layers.0.mlp.gate.weight"
    tensors[fc], tensors[gate] = tensors[gate].clone(), tensors[fc].clone()
    save_file(tensors, checkpoint.weights_path)
    report = report_of(tmp_path, checkpoint)
    assert report.mean_kl_nats > 1e-2
    assert report.weight_errors["mlp.gate_proj.weight"] == pytest.approx(2**0.5, rel=0.2)
    assert torch.tensor(report.weight_errors["self_attn.q_proj.weight"]) == 0
