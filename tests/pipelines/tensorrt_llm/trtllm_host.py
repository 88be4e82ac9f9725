"""A host with TensorRT-LLM, faked: `trtllm-build` and `trtllm-serve` that check what they are given against tables
typed here from the format's description, and a package `tensorrt_llm` that has a version and nothing else.
"""

import os
import sys
from pathlib import Path

BUILD = '''
import json, os, sys
from math import prod

FLAGS = {
    "checkpoint_dir", "output_dir", "max_batch_size", "max_input_len", "max_seq_len", "max_beam_width",
    "max_num_tokens", "opt_num_tokens", "kv_cache_type", "input_timing_cache", "output_timing_cache", "strip_plan",
    "workers",
    "speculative_decoding_mode", "gpt_attention_plugin", "gemm_plugin", "context_fmha", "remove_input_padding",
    "tokens_per_block", "use_paged_context_fmha", "multiple_profiles",
}
CHOICES = {
    "kv_cache_type": {"continuous", "paged"}, "gemm_plugin": {"float16", "bfloat16", "disable"},
    "gpt_attention_plugin": {"auto"}, "speculative_decoding_mode": {"explicit_draft_tokens"},
    "context_fmha": {"enable", "disable"}, "remove_input_padding": {"enable"},
    "multiple_profiles": {"enable", "disable"}, "use_paged_context_fmha": {"enable", "disable"},
}
NUMBERS = {"max_batch_size", "max_input_len", "max_seq_len", "max_beam_width", "max_num_tokens", "opt_num_tokens",
           "workers", "tokens_per_block"}


def fail(text):
    print("RuntimeError:", text, file=sys.stderr)
    sys.exit(1)


def parse(words):
    given = {}
    while words:
        flag = words.pop(0)
        name = flag[2:]
        if not flag.startswith("--") or name not in FLAGS:
            fail("unrecognized arguments: " + flag)
        given[name] = True if name == "strip_plan" else words.pop(0)
        if name in CHOICES and given[name] not in CHOICES[name]:
            fail("invalid choice for " + name)
        if name in NUMBERS and int(given[name]) < 1:
            fail("not positive: " + name)
    return given


def header(path):
    with open(path, "rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    entries.pop("__metadata__", None)
    return entries


def required(config, rank):
    """Names and shapes of one rank's tensors."""
    mapping = config["mapping"]
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    assert mapping["world_size"] == tp * pp
    stage = rank // tp
    H, D, V = config["hidden_size"], config["head_size"], config["vocab_size"]
    I, Nq, Nkv = config["intermediate_size"], config["num_attention_heads"], config["num_key_value_heads"]
    qkv = (Nq // tp + 2 * max(1, Nkv // tp)) * D
    padded = (V + tp - 1) // tp * tp
    shapes = {}
    if stage == 0:
        shapes["transformer.vocab_embedding.weight"] = [padded // tp, H]
    for layer in range(config["num_hidden_layers"] // pp):
        p = "transformer.layers.%d." % layer
        shapes[p + "input_layernorm.weight"] = [H]
        shapes[p + "post_layernorm.weight"] = [H]
        shapes[p + "attention.qkv.weight"] = [qkv, H]
        if config["attn_bias"]:
            shapes[p + "attention.qkv.bias"] = [qkv]
        if config["qk_layernorm"]:
            shapes[p + "attention.q_layernorm.weight"] = [D]
            shapes[p + "attention.k_layernorm.weight"] = [D]
        shapes[p + "attention.dense.weight"] = [H, Nq * D // tp]
        shapes[p + "mlp.fc.weight"] = [I // tp, H]
        shapes[p + "mlp.gate.weight"] = [I // tp, H]
        shapes[p + "mlp.proj.weight"] = [H, I // tp]
    if stage == pp - 1:
        shapes["transformer.ln_f.weight"] = [H]
        shapes["lm_head.weight"] = [padded // tp, H]
    if config["architecture"].startswith("ReDrafter"):
        assert config["redrafter_is_rnn"] is True and config["redrafter_hidden_size"] == H
        assert config["base_model_architecture"] in ("LlamaForCausalLM", "Qwen2ForCausalLM")
        E = config["redrafter_exit_dim"]
        shapes["drafter.input_proj.weight"], shapes["drafter.input_proj.bias"] = [E // tp, 2 * H], [E // tp]
        for block in range(config["redrafter_num_layers"]):
            shapes["drafter.layers.%d.linear.weight" % block] = [E // tp, E]
            shapes["drafter.layers.%d.linear.bias" % block] = [E // tp]
        shapes["drafter.lm_head.weight"] = [padded // tp, E]
        shapes["drafter.rnn_u.weight"], shapes["drafter.rnn_u.bias"] = [H // tp, H], [H // tp]
        shapes["drafter.rnn_w.weight"] = [H // tp, H]
    return shapes


if os.environ.get("FAKE_TRTLLM") == "fails":
    fail("out of memory while building")
given = parse(sys.argv[1:])
folder = given["checkpoint_dir"]
config = json.load(open(os.path.join(folder, "config.json")))
architectures = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
                 "ReDrafterForLLaMALM", "ReDrafterForQWenLM"}
if config["architecture"] not in architectures:
    fail("Unsupported model architecture: " + config["architecture"])
if config["architecture"].startswith("ReDrafter") != ("speculative_decoding_mode" in given):
    fail("explicit_draft_tokens goes with ReDrafter")
dtype = {"float16": "F16", "bfloat16": "BF16"}[config["dtype"]]
for rank in range(config["mapping"]["world_size"]):
    entries = header(os.path.join(folder, "rank%d.safetensors" % rank))
    wanted = required(config, rank)
    if sorted(entries) != sorted(wanted):
        fail("Required but not provided tensors: %s" % sorted(set(wanted) ^ set(entries)))
    for name, entry in entries.items():
        if entry["shape"] != wanted[name] or entry["dtype"] != dtype:
            fail("%s is %s %s, not %s" % (name, entry["dtype"], entry["shape"], wanted[name]))
print("[TRT-LLM] building", config["mapping"]["world_size"], "ranks")
os.makedirs(given["output_dir"])
for rank in range(config["mapping"]["world_size"]):
    open(os.path.join(given["output_dir"], "rank%d.engine" % rank), "wb").write(b"engine")
version = "1.1.0" if os.environ.get("FAKE_TRTLLM") == "other" else "1.2.1"
built = {"version": version, "pretrained_config": config, "build_config": {}}
json.dump(built, open(os.path.join(given["output_dir"], "config.json"), "w"))
before = os.path.exists(given["input_timing_cache"])
open(given["output_timing_cache"], "w").write("warm" if before else "cold")
'''
SERVE = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), "files": sorted(os.listdir("model"))}))
"""


def make_host(folder: Path, version: str, programs: tuple[str, ...] = ("trtllm-build",)) -> dict[str, str]:
    """Put the programs into `folder`/bin; returns the environment that finds them and their package."""
    texts = {"trtllm-build": BUILD, "trtllm-serve": SERVE}
    (folder / "bin").mkdir(parents=True)
    for name in programs:
        program = folder / "bin" / name
        program.write_text(f"#!{sys.executable}\n{texts[name]}")
        program.chmod(0o755)
    package = folder / f"site/tensorrt_llm-{version}.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n")
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    python_path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": python_path}
