"""Whatever is wrong with a model's files, conversion says it in one line that names file or tensor, and writes none."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import EnginewrightError
from tests.pipelines.running_stages import fetch_and_convert
from tests.pipelines.tiny_models import make_gguf_file, make_hf_folder

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return make_hf_folder(tmp_path / "hf")


@pytest.fixture
def sharded(tmp_path):
    return make_hf_folder(tmp_path / "sharded", max_shard_size="100KB")


def refused(source, tmp_path, match):
    with pytest.raises(EnginewrightError, match=match) as caught:
        fetch_and_convert(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "out/convert").rglob("*") if path.is_file()] == []


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_index_that_names_a_missing_shard(sharded, tmp_path):
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    refused(sharded, tmp_path, f"{INDEX}: names {missing.name}, which is not in the folder; fetch the source again")


def test_an_index_that_names_a_tensor_its_shard_does_not_hold(sharded, tmp_path):
    index = json.loads((sharded / INDEX).read_text())
    shard = index["weight_map"]["model.norm.weight"]
    change_json(sharded / INDEX, weight_map={**index["weight_map"], "model.other.weight": shard})
    refused(sharded, tmp_path, rf"{INDEX}: says that {shard} holds model\.other\.weight, but it does not")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": 3}', "[", "[]"])
def test_an_index_that_is_none(sharded, tmp_path, text):
    (sharded / INDEX).write_text(text)
    refused(sharded, tmp_path, rf"{INDEX}: (has no weight_map|cannot be read as JSON|holds a list)")


@pytest.mark.parametrize("header_len", [2**63, 2**40, 10**9, 0])
def test_an_absurd_header_length(folder, tmp_path, header_len):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(header_len.to_bytes(8, "little") + content[8:])
    refused(folder, tmp_path, r"model\.safetensors: unreadable safetensors \(.+\); fetch it again")


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_truncated_safetensors(folder, tmp_path, length):
    path = folder / "model.safetensors"
    os.truncate(path, length % path.stat().st_size)
    refused(folder, tmp_path, r"model\.safetensors: unreadable safetensors \(.+\); fetch it again")


def test_a_missing_tensor(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, tmp_path, r"tensor model\.layers\.1\.mlp\.down_proj\.weight is missing; the source is incomplete")


def test_a_misshapen_tensor(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.ones(64, 64)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, tmp_path, r"k_proj\.weight has shape \(64, 64\) but config\.json asks for \(32, 64\)")


def test_a_tensor_in_two_files(folder, tmp_path):
    save_file({"model.norm.weight": torch.ones(64)}, folder / "model-other.safetensors")
    refused(folder, tmp_path, r"tensor model\.norm\.weight is in another file of .* too; keep one of them")


def test_a_tokenizer_of_another_model(folder, tmp_path):
    change_json(folder / "config.json", vocab_size=300)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300].clone()
    save_file(tensors, folder / "model.safetensors")
    refused(
        folder, tmp_path, r"the tokenizer has 3\d\d tokens but the model's vocabulary 300; they belong to different"
    )


def test_an_end_token_outside_the_vocabulary(folder, tmp_path):
    change_json(folder / "generation_config.json", eos_token_id=[2, 5000])
    refused(folder, tmp_path, r"eos_token_ids\[1\] is 5000 but the model's vocabulary has 384 tokens")


TEMPLATES = {
    "does not compile": ("{% for message in messages %}", r"does not compile \(Unexpected end of template"),
    "raises": ("{{ raise_exception('no user, please') }}", "refused the messages: no user, please"),
    "stumbles": ("{{ messages[0]['content'] + 1 }}", "refused the messages: can only concatenate str"),
    "breaks out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refused the messages: access to attribute"),
}


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("fault", TEMPLATES)
def test_a_chat_template_that_does_not_work(folder, tmp_path, fault, place):
    template, words = TEMPLATES[fault]
    if place.endswith(".jinja"):
        (folder / place).write_text(template)
    else:
        change_json(folder / place, chat_template=template)
    refused(folder, tmp_path, rf"{place}: the chat template {words}.*; correct it there, or remove it")


def test_a_chat_template_of_a_gguf_file_that_does_not_work(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.pipelines.tiny_models.CHAT_TEMPLATE", "{% if %}")
    path = make_gguf_file(tmp_path / "m.gguf")
    refused(path, tmp_path, r"m\.gguf: tokenizer\.chat_template: the chat template does not compile")


def test_an_unsupported_architecture_lists_the_supported(folder, tmp_path):
    change_json(folder / "config.json", architectures=["MixtralForCausalLM"])
    known = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
    refused(folder, tmp_path, f"architecture 'MixtralForCausalLM' is not supported; give a model of {known}")
