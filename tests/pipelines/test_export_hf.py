"""From a Hugging Face folder to the unified checkpoint and back: the same bits, and a model that computes the same."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipelines.export.hf import export_hf, plan_shards
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from tests.pipelines.running_stages import fetch_and_convert
from tests.pipelines.test_convert_weights import LLAMA3, YARN
from tests.pipelines.tiny_models import SAMPLES, make_hf_folder

MODELS = {
    "llama, tied": {"family": "llama"},
    "llama, untied, llama3 rope": {"family": "llama", "tied": False, "rope_parameters": LLAMA3},
    "llama, linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "mistral with a window": {"family": "mistral", "sliding_window": 16},
    "qwen2, yarn": {"family": "qwen2", "tied": False, "rope_parameters": YARN},
    "qwen2 with a window": {
        "family": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0
    },
    "qwen3, wide heads": {"family": "qwen3", "head_dim": 32},
}  # fmt: skip
ONE_SHARD = 10**9


def weights_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def logits_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(384, (1, 100), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return model(ids).logits


@pytest.mark.parametrize("model", MODELS)
def test_a_model_comes_back_as_it_was(model, tmp_path):
    folder = make_hf_folder(tmp_path / "hf", **MODELS[model])
    first = fetch_and_convert(folder, tmp_path / "first")
    export_hf(Checkpoint(first), tmp_path / "back", ONE_SHARD)
    assert_same(weights_of(tmp_path / "back"), weights_of(folder))
    assert torch.equal(logits_of(tmp_path / "back"), logits_of(folder))
    second = fetch_and_convert(tmp_path / "back", tmp_path / "second")
    for name in ("config.json", "weights.safetensors", "tokenizer/tokenizer.json", "tokenizer/generation.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_comes_back_bit_for_bit(dtype, tmp_path):
    folder = make_hf_folder(tmp_path / "hf", dtype=dtype)
    export_hf(Checkpoint(fetch_and_convert(folder, tmp_path / "out", dtype)), tmp_path / "back", ONE_SHARD)
    assert_same(weights_of(tmp_path / "back"), weights_of(folder))
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == dtype


def test_shards_keep_to_their_limit_and_name_every_tensor_once(tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    checkpoint = Checkpoint(fetch_and_convert(folder, tmp_path / "out"))
    written = export_hf(checkpoint, tmp_path / "back", 100_000)
    shards = [path for path in written if path.suffix == ".safetensors"]
    assert len(shards) > 2
    assert all(path.stat().st_size < 100_000 + 4096 for path in shards)  # and a header
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    for path in shards:
        assert {name for name, place in index["weight_map"].items() if place == path.name} == load_file(path).keys()
    assert_same(weights_of(tmp_path / "back"), weights_of(folder))
    assert torch.equal(logits_of(tmp_path / "back"), logits_of(folder))


def test_a_tensor_larger_than_a_shard_has_one_of_its_own():
    shards = plan_shards({"a": (2,), "b": (100,), "c": (3,), "d": (4,)}, 2, 20)
    assert [list(shard) for shard in shards] == [["a"], ["b"], ["c", "d"]]


def test_the_tokenizer_comes_with_it(tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    export_hf(Checkpoint(fetch_and_convert(folder, tmp_path / "out")), tmp_path / "back", ONE_SHARD)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "back"), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "hi"}]
    for text in SAMPLES:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == (theirs.bos_token, theirs.eos_token, theirs.pad_token)
    assert GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id == 2


def test_what_exists_is_not_touched_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = Checkpoint(fetch_and_convert(make_hf_folder(tmp_path / "hf"), tmp_path / "out"))
    (tmp_path / "there").mkdir()
    with pytest.raises(EnginewrightError, match="there: exists already; name a new folder"):
        export_hf(checkpoint, tmp_path / "there", ONE_SHARD)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.formats.safetensors_writer.SafetensorsWriter.write", no_space)
    with pytest.raises(EnginewrightError, match=r"cannot be written \(No space left on device\)"):
        export_hf(checkpoint, tmp_path / "gone", ONE_SHARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out", "there"]
