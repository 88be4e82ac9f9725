"""transformers filled with a unified checkpoint is the model the checkpoint was written from."""

import pytest
import torch

from pipelines.quality.hf_model import load_converted, load_source
from runtime.errors import EnginewrightError
from tests.pipelines.unified_models import FAMILIES, tiny_model, write_checkpoint, write_source


@pytest.mark.parametrize("family", FAMILIES)
def test_converted_model_computes_the_same_logits(tmp_path, family):
    model = tiny_model(family)
    ids = torch.arange(3, 43)[None]
    converted = load_converted(write_checkpoint(tmp_path, model, family), torch.float32)
    with torch.inference_mode():
        assert torch.equal(converted(ids).logits, model(ids).logits)
    assert not converted.training


def test_rotary_frequencies_are_not_rounded_in_bf16(tmp_path):
    model = tiny_model()
    converted = load_converted(write_checkpoint(tmp_path, model, dtype="bfloat16"), torch.bfloat16)
    assert converted.dtype == torch.bfloat16
    assert torch.equal(converted.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    ("family", "architecture", "fault"),
    [("qwen3", "LlamaForCausalLM", "unexpected"), ("llama", "Qwen3ForCausalLM", "missing")],
)
def test_weights_of_another_architecture_are_refused(tmp_path, family, architecture, fault):
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family, architecture=architecture)
    with pytest.raises(EnginewrightError, match=fault):
        load_converted(checkpoint, torch.float32)


@pytest.mark.parametrize("changes", [{"architecture": "FalconForCausalLM"}, {"sliding_window": 5}])
def test_what_transformers_cannot_express_is_refused(tmp_path, changes):
    with pytest.raises(EnginewrightError, match=r"FalconForCausalLM|window of 5"):
        load_converted(write_checkpoint(tmp_path, tiny_model(), **changes), torch.float32)


def test_source_folder_is_read_by_transformers_itself(tmp_path):
    model = tiny_model()
    source = load_source(write_source(tmp_path, model))
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode():
        assert torch.equal(source(ids).logits, model(ids).logits)


def test_pickled_source_is_refused(tmp_path):
    model = tiny_model()
    write_source(tmp_path, model)
    (tmp_path / "source/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "source/pytorch_model.bin")
    with pytest.raises(EnginewrightError, match="cannot read this source"):
        load_source(tmp_path)
