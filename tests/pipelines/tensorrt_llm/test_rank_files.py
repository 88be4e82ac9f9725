"""The checkpoint for trtllm-build: names, shapes and splits as typed here from the format's description."""

import json
import os
import tracemalloc
from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from pipelines.tensorrt_llm import make_weights
from tests.pipelines.tensorrt_llm.folders_of import FAMILIES, compile_folder, make_model, no_draft, same
from tests.runtime.heads import head_config, write_random_head


@pytest.fixture(scope="session", params=list(FAMILIES))
def model(request, tmp_path_factory):
    checkpoint, tensors = make_model(tmp_path_factory.mktemp(request.param), request.param)
    return checkpoint, tensors, json.loads((checkpoint.parent / "hf/config.json").read_text())


def split(tensor, parts, part, dim=0):
    return tensor.chunk(parts, dim)[part]


def padded(tensor, parts):
    missing = -len(tensor) % parts
    return torch.cat([tensor, tensor.new_zeros(missing, tensor.shape[1])])


def heads(tensor, head_dim, num_heads, tp):
    """The rows of key or value heads; each head stands for as many ranks as share it."""
    if num_heads >= tp:
        return tensor
    one = tensor.unflatten(0, (num_heads, head_dim))
    return one.repeat_interleave(tp // num_heads, dim=0).flatten(0, 1)


def expected_rank(hf, config, tp, pp, rank):
    """One rank's tensors, from transformers' names."""
    stage, r = rank // tp, rank % tp
    per_stage = config["num_hidden_layers"] // pp
    embedding, expected = hf["model.embed_tokens.weight"], {}
    if stage == 0:
        expected["transformer.vocab_embedding.weight"] = split(padded(embedding, tp), tp, r)
    for layer in range(per_stage):
        theirs, ours = f"model.layers.{stage * per_stage + layer}.", f"transformer.layers.{layer}."
        expected[ours + "input_layernorm.weight"] = hf[theirs + "input_layernorm.weight"]
        expected[ours + "post_layernorm.weight"] = hf[theirs + "post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            if f"{theirs}self_attn.q_proj.{kind}" in hf:
                q, k, v = (hf[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv")
                k, v = (heads(x, config["head_dim"], config["num_key_value_heads"], tp) for x in (k, v))
                expected[f"{ours}attention.qkv.{kind}"] = torch.cat([split(x, tp, r) for x in (q, k, v)])
        for part in "qk":
            if f"{theirs}self_attn.{part}_norm.weight" in hf:
                expected[f"{ours}attention.{part}_layernorm.weight"] = hf[f"{theirs}self_attn.{part}_norm.weight"]
        expected[ours + "attention.dense.weight"] = split(hf[theirs + "self_attn.o_proj.weight"], tp, r, 1)
        expected[ours + "mlp.fc.weight"] = split(hf[theirs + "mlp.gate_proj.weight"], tp, r)
        expected[ours + "mlp.gate.weight"] = split(hf[theirs + "mlp.up_proj.weight"], tp, r)
        expected[ours + "mlp.proj.weight"] = split(hf[theirs + "mlp.down_proj.weight"], tp, r, 1)
    if stage == pp - 1:
        expected["transformer.ln_f.weight"] = hf["model.norm.weight"]
        expected["lm_head.weight"] = split(padded(hf.get("lm_head.weight", embedding), tp), tp, r)
    return expected


@pytest.mark.parametrize(("tp", "pp"), list(product((1, 2, 4), (1, 2))))
def test_every_rank_has_its_share_of_every_tensor(model, tmp_path, tp, pp):
    checkpoint, hf, config = model
    out, output = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), tp_size=tp, pp_size=pp)
    files = sorted(path.name for path in (out / "checkpoint").iterdir())
    assert files == sorted(["config.json", *(f"rank{rank}.safetensors" for rank in range(tp * pp))])
    for rank in range(tp * pp):
        found = load_file(out / f"checkpoint/rank{rank}.safetensors")
        assert same(found, expected_rank(hf, config, tp, pp, rank)), rank
    mapping = json.loads((out / "checkpoint/config.json").read_text())["mapping"]
    assert mapping == {"world_size": tp * pp, "tp_size": tp, "pp_size": pp}
    assert "NOT BUILT: it is not installed here; build.sh builds it" in output.summary


def test_the_configuration_has_the_formats_fields(model, tmp_path):
    checkpoint, _, hf = model
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"))
    found = json.loads((out / "checkpoint/config.json").read_text())
    qwen = hf["model_type"].startswith("qwen")
    special = {"qwen_type": hf["model_type"], "seq_length": 8192, "use_logn_attn": False} if qwen else {}
    assert found == {
        "architecture": hf["architectures"][0], "dtype": "bfloat16", "logits_dtype": "float32",
        "vocab_size": hf["vocab_size"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": hf["num_key_value_heads"], "head_size": hf["head_dim"], "intermediate_size": 128,
        "hidden_act": "silu", "norm_epsilon": hf["rms_norm_eps"], "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 256, "rotary_base": hf["rope_parameters"]["rope_theta"], "rotary_scaling": None,
        "qk_layernorm": hf["model_type"] == "qwen3", "attn_bias": hf["model_type"] == "qwen2", "mlp_bias": False,
        "disable_weight_only_quant_plugin": False, "use_parallel_embedding": True, "embedding_sharding_dim": 0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128, "exclude_modules": None},
        "producer": {"name": "enginewright"}, **(special or {"residual_mlp": False}),
    }  # fmt: skip


def test_rotary_scaling_is_written_as_hugging_face_does(tmp_path):
    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    checkpoint, _ = make_model(tmp_path, "llama-tied", rope_parameters=scaling)
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"))
    found = json.loads((out / "checkpoint/config.json").read_text())
    del scaling["rope_theta"]
    assert (found["rotary_scaling"], found["rotary_base"]) == (scaling, 5e5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    ("family", "name"), [("llama-odd-vocabulary", "ReDrafterForLLaMALM"), ("qwen2", "ReDrafterForQWenLM")]
)
def test_the_head_is_split_and_described_as_tensorrt_llm_wants_it(tmp_path, family, name, tp, tied):
    checkpoint, hf = make_model(tmp_path, family)
    vocab_size = len(hf["model.embed_tokens.weight"])
    exit_dim = 64 if tied else 48
    head = head_config(hidden_size=64, exit_dim=exit_dim, vocab_size=vocab_size, tied_head=tied, dialect="tensorrt_llm")
    tensors = write_random_head(no_draft(tmp_path / "draft", "redrafter"), head)
    out, _ = compile_folder(tmp_path, checkpoint, tmp_path / "draft", tp_size=tp, redrafter="on",
                            redrafter_num_beams=4, redrafter_draft_len_per_beam=3)  # fmt: skip
    config = json.loads((out / "checkpoint/config.json").read_text())
    assert config["architecture"] == name
    assert {key: value for key, value in config.items() if "redrafter" in key or key == "base_model_architecture"} == {
        "base_model_architecture": "Qwen2ForCausalLM" if family == "qwen2" else "LlamaForCausalLM",
        "redrafter_num_layers": 2, "redrafter_hidden_size": 64, "redrafter_exit_dim": exit_dim,
        "redrafter_is_rnn": True, "redrafter_num_beams": 4, "redrafter_draft_len_per_beam": 3,
        "redrafter_greedy_search": True,
    }  # fmt: skip
    assert {"drafter", "drafter.lm_head", "drafter.layers.1.linear"} <= {*config["quantization"]["exclude_modules"]}
    stored = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    rows = hf.get("lm_head.weight", hf["model.embed_tokens.weight"]) if tied else stored["drafter.lm_head.weight"]
    for rank in range(tp):
        found = load_file(out / f"checkpoint/rank{rank}.safetensors")
        expected = {"drafter.lm_head.weight": split(padded(rows, tp), tp, rank)}
        for part in ("input_proj.weight", "input_proj.bias", "layers.0.linear.weight", "layers.0.linear.bias",
                     "layers.1.linear.weight", "layers.1.linear.bias", "rnn_u.weight", "rnn_u.bias",
                     "rnn_w.weight"):  # fmt: skip
            expected[f"drafter.{part}"] = split(stored[f"drafter.{part}"], tp, rank)
        assert same({key: tensor for key, tensor in found.items() if key.startswith("drafter.")}, expected)
        assert "draft_vocab_ids" not in found


def test_a_head_in_another_dtype_is_rounded_to_the_models(tmp_path):
    checkpoint, _ = make_model(tmp_path, "llama-tied", dtype="float16")
    head = head_config(hidden_size=64, exit_dim=64, vocab_size=384, dialect="tensorrt_llm")
    tensors = write_random_head(no_draft(tmp_path / "draft", "redrafter"), head)
    out, _ = compile_folder(tmp_path, checkpoint, tmp_path / "draft")
    found = load_file(out / "checkpoint/rank0.safetensors")
    assert torch.equal(found["drafter.rnn_w.weight"], tensors["drafter.rnn_w.weight"].half())


def test_weights_made_on_the_host_are_the_same_bytes(tmp_path, monkeypatch):
    checkpoint, _ = make_model(tmp_path, "qwen2")
    head = head_config(hidden_size=64, exit_dim=64, vocab_size=302, dialect="tensorrt_llm")
    write_random_head(no_draft(tmp_path / "draft", "redrafter"), head)
    for where in ("bundle", "host"):
        (tmp_path / where).mkdir()
    here, _ = compile_folder(tmp_path / "bundle", checkpoint, tmp_path / "draft", tp_size=4)
    left, _ = compile_folder(tmp_path / "host", checkpoint, tmp_path / "draft", tp_size=4, weights="host")
    assert [path.name for path in (left / "checkpoint").iterdir()] == ["config.json"]
    assert not (here / "weights.json").exists()
    monkeypatch.setattr(make_weights, "CHUNK_BYTES", 1000)  # rows and runs do not end where chunks do
    plan = json.loads((left / "weights.json").read_text())
    for entry in plan["files"]:
        make_weights.write_file(str(left), plan["sources"], entry, str(tmp_path / "made" / entry["path"]))
        assert (tmp_path / "made" / entry["path"]).read_bytes() == (here / entry["path"]).read_bytes()
        assert os.path.getsize(here / entry["path"]) == entry["size"]


def test_a_rank_file_needs_a_chunk_of_memory_however_large_it_is(tmp_path, monkeypatch):
    checkpoint, _ = make_model(tmp_path, "llama-tied", hidden=256, intermediate=2048, num_layers=4)
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), tp_size=2, weights="host")
    plan = json.loads((out / "weights.json").read_text())
    size = plan["files"][0]["size"]
    monkeypatch.setattr(make_weights, "CHUNK_BYTES", 2**16)
    tracemalloc.start()
    make_weights.write_file(str(out), plan["sources"], plan["files"][0], str(tmp_path / "made"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**16 < size / 10


def test_a_changed_source_or_plan_writes_no_file(tmp_path):
    checkpoint, _ = make_model(tmp_path, "llama-tied")
    out, _ = compile_folder(tmp_path, checkpoint, no_draft(tmp_path / "draft"), weights="host")
    plan = json.loads((out / "weights.json").read_text())
    with pytest.raises(ValueError, match="came out with sha256"):
        make_weights.write_file(str(out), plan["sources"], plan["files"][0] | {"sha256": "0" * 64}, str(tmp_path / "a"))
    assert not list(tmp_path.glob("a*"))
    weights = tmp_path / "bundle/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="copy the bundle again"):
        make_weights.check_sources(str(out), plan["sources"])
    weights.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"has {len(data) - 1} bytes, not {len(data)}"):
        make_weights.check_sources(str(out), plan["sources"])
