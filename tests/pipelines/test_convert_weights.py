"""A converted checkpoint holds the source's weights, bit for bit, whatever format they came in."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipelines.digest import folder_entries
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.spec import RopeScaling
from tests.pipelines.running_stages import fetch_and_convert
from tests.pipelines.tiny_models import make_gguf_file, make_hf_folder

FAMILIES = {
    "llama": {"family": "llama"},
    "llama-untied": {"family": "llama", "tied": False},
    "llama-one-kv-head": {"family": "llama", "heads": 3, "kv_heads": 1, "hidden": 96},
    "mistral": {"family": "mistral", "sliding_window": 16},
    "qwen2": {"family": "qwen2", "tied": False},
    "qwen3": {"family": "qwen3", "head_dim": 32},
}
HF_NAMES = {
    "transformer.vocab_embedding.": "model.embed_tokens.",
    "transformer.ln_f.": "model.norm.",
    "transformer.layers.": "model.layers.",
    "attention.dense.": "self_attn.o_proj.",
    "attention.q_layernorm.": "self_attn.q_norm.",
    "attention.k_layernorm.": "self_attn.k_norm.",
    "post_layernorm.": "post_attention_layernorm.",
    "mlp.fc.": "mlp.gate_proj.",
    "mlp.gate.": "mlp.up_proj.",
    "mlp.proj.": "mlp.down_proj.",
}


def unfused(path):
    """A checkpoint's tensors under Hugging Face's names."""
    checkpoint = Checkpoint(path)
    spec = checkpoint.spec
    tensors = {}
    for unified, tensor in checkpoint.tensors():
        name = unified
        for ours, theirs in HF_NAMES.items():
            name = name.replace(ours, theirs)
        if "attention.qkv." not in name:
            tensors[name] = tensor
            continue
        for role, part in zip("qkv", tensor.split([spec.q_size, spec.kv_size, spec.kv_size]), strict=True):
            tensors[name.replace("attention.qkv.", f"self_attn.{role}_proj.")] = part
    return tensors


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name


def state_dict(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_and_a_gguf_file_of_a_model_convert_to_its_weights(family, tmp_path):
    folder = make_hf_folder(tmp_path / "hf", **FAMILIES[family])
    expected = state_dict(folder)
    from_hf = fetch_and_convert(folder, tmp_path / "from-hf")
    from_gguf = fetch_and_convert(make_gguf_file(tmp_path / "m.gguf", hf_folder=folder), tmp_path / "from-gguf")
    assert_same(unfused(from_hf), expected)
    assert_same(unfused(from_gguf), expected)
    assert (from_hf / "config.json").read_bytes() == (from_gguf / "config.json").read_bytes()
    assert (from_hf / "weights.safetensors").read_bytes() == (from_gguf / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_a_quantized_gguf_file_converts_to_what_transformers_reads(quantization, tmp_path):
    make_gguf_file(tmp_path / "m.gguf", quantization=quantization)
    converted = fetch_and_convert(tmp_path / "m.gguf", tmp_path / "out")
    expected = state_dict(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    assert_same(unfused(converted), expected)


@pytest.mark.parametrize("source_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_source_dtype_is_rounded_once(source_dtype, dtype, tmp_path):
    folder = make_hf_folder(tmp_path / "hf", dtype=source_dtype)
    converted = unfused(fetch_and_convert(folder, tmp_path / "out", dtype))
    stored = load_file(folder / "model.safetensors")
    assert_same(converted, {name: tensor.to(getattr(torch, dtype)) for name, tensor in stored.items()})


def test_shards_convert_like_one_file(tmp_path):
    one = fetch_and_convert(make_hf_folder(tmp_path / "one"), tmp_path / "from-one")
    many = make_hf_folder(tmp_path / "many", max_shard_size="100KB")
    assert len(list(many.glob("*.safetensors"))) > 2
    assert folder_entries(fetch_and_convert(many, tmp_path / "from-many")) == folder_entries(one)


@pytest.mark.parametrize("make", [make_hf_folder, partial(make_gguf_file, quantization="Q8_0")])
def test_converting_twice_gives_the_same_bytes(make, tmp_path):
    source = make(tmp_path / "m.gguf")
    first = fetch_and_convert(source, tmp_path / "first", "bfloat16")
    assert folder_entries(first) == folder_entries(fetch_and_convert(source, tmp_path / "second", "bfloat16"))


def test_a_tied_heads_stored_copy_and_old_frequencies_are_left_out(tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    extras = {"lm_head.weight": torch.ones(384, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({**tensors, **extras}, folder / "model.safetensors")
    assert_same(unfused(fetch_and_convert(folder, tmp_path / "out")), tensors)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
ROPE_CASES = {
    "none": ({"rope_type": "default", "rope_theta": 12345.0}, RopeScaling()),
    "linear": ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, RopeScaling("linear", 2.0)),
    "llama3": (LLAMA3, RopeScaling("llama3", 8.0, 8192)),
    # 0.1 ln 4 + 1, written out: the default is resolved at conversion
    "yarn": (YARN, RopeScaling("yarn", 4.0, 64, attention_factor=1.138629436111989)),
}


@pytest.mark.parametrize("case", ROPE_CASES)
def test_rope_scaling_is_read_from_either_format(case, tmp_path):
    rope, expected = ROPE_CASES[case]
    # heads of 64, so that a llama3 rule over 8192 positions has all three of its ranges
    folder = make_hf_folder(tmp_path / "hf", hidden=128, heads=2, kv_heads=1, rope_parameters=rope)
    gguf = make_gguf_file(tmp_path / "m.gguf", hf_folder=folder)
    for name, source in (("hf", folder), ("gguf", gguf)):
        spec = Checkpoint(fetch_and_convert(source, tmp_path / f"from-{name}")).spec
        assert (spec.rope_theta, spec.rope_scaling) == (rope["rope_theta"], expected)


def test_older_configs_keep_theta_and_scaling_apart(tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 7e4, "rope_scaling": {"type": "linear", "factor": 3.0}}
    (folder / "config.json").write_text(json.dumps(config))
    spec = Checkpoint(fetch_and_convert(folder, tmp_path / "out")).spec
    assert (spec.rope_theta, spec.rope_scaling) == (7e4, RopeScaling("linear", 3.0))


def refused(folder, tmp_path, match):
    with pytest.raises(EnginewrightError, match=match) as caught:
        fetch_and_convert(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "out" / "convert").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported; .*LlamaForCausalLM.*Qwen3"),
        ({"architectures": None}, r"'\(none\)' is not supported"),
        ({"num_hidden_layers": 3}, r"tensor model\.layers\.2\.input_layernorm\.weight is missing"),
        ({"num_hidden_layers": 1}, r"tensor model\.layers\.1\..* has no place in LlamaForCausalLM"),
        ({"intermediate_size": 96}, r"gate_proj\.weight has shape \(128, 64\) but config.json asks for \(96, 64\)"),
        ({"hidden_size": None}, "hidden_size is None, not a number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only silu"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide into 3"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized \(awq\)"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "'llama3' is incomplete .*low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rotary settings differ by layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)  # fmt: skip
def test_a_config_that_the_weights_or_the_decoder_do_not_fit_is_refused(changes, match, tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, tmp_path, match)


def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.formats.safetensors_writer.SafetensorsWriter.write", no_space)
    refused(make_hf_folder(tmp_path / "hf"), tmp_path, r"No space left on device\); 0\.00 GB of free space are needed")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors")
    refused(folder, tmp_path, r"tensor model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite values")


def test_a_weight_beyond_float16_is_an_error_and_no_infinity(tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][1, 2] = -70000.0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        EnginewrightError,
        match=r"tensor model\.layers\.0\.mlp\.down_proj\.weight has a weight of 70000 but "
        r"torch\.float16 ends at 65504; write precision=bf16",
    ):
        fetch_and_convert(folder, tmp_path / "half", "float16")
    fetch_and_convert(folder, tmp_path / "brain", "bfloat16")


def test_integer_weights_and_damaged_shards_are_refused(tmp_path):
    folder = make_hf_folder(tmp_path / "hf")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, path)
    refused(folder, tmp_path, r"model\.norm\.weight is torch\.int8, a quantized form")
    path.write_bytes(content[: len(content) // 2])
    refused(folder, tmp_path / "second", "unreadable safetensors")
