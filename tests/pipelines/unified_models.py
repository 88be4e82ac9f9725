"""Tiny random transformers models, and the unified checkpoints and fetched sources written from them.

The formulas of the format (fusing, renaming) are typed here, apart from the code that is tested with them.
"""

import json

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from runtime.formats.checkpoint import Checkpoint, CheckpointConfig
from runtime.spec import ModelSpec, RopeScaling

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
LLAMA3 = RopeScaling("llama3", 8.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = RopeScaling("yarn", 4.0, original_max_position_embeddings=32, attention_factor=1.2)
# family -> (transformers' config class, what is special in its config, what is special in our spec)
FAMILIES = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}, {"tied_head": True}),
    "llama3-rope": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    ),
    "mistral": (MistralConfig, {"sliding_window": 5}, {"sliding_window": 5}),
    "qwen2": (
        Qwen2Config,
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.2,
                             "original_max_position_embeddings": 32}},
        {"qkv_bias": True, "rope_scaling": YARN},
    ),
    "qwen2-window": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
        {"qkv_bias": True, "sliding_window": 5},
    ),
    "qwen3": (Qwen3Config, {}, {"qk_norm": True}),
    "llama2": (LlamaConfig, {"num_key_value_heads": 4}, {}),  # as many key as query heads, an untied head
    "smollm2": (  # heads that are no power of two
        LlamaConfig,
        {"tie_word_embeddings": True, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72},
        {"tied_head": True},
    ),
    "llama-linear": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {"rope_scaling": RopeScaling("linear", 4.0)},
    ),
    "mistral-no-window": (MistralConfig, {"sliding_window": None, "head_dim": 16}, {}),
    "qwen3-wide-heads": (  # heads that together are wider than the model, and yarn
        Qwen3Config,
        {"head_dim": 24, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "attention_factor": 1.2,
                             "original_max_position_embeddings": 32}},
        {"qk_norm": True, "tied_head": True, "rope_theta": 1e6, "rope_scaling": YARN},
    ),
}  # fmt: skip


def tiny_model(family="llama"):
    """A random transformers model in float32, large enough weights that its argmax is no accident."""
    config_class, special, _ = FAMILIES[family]
    torch.manual_seed(7)
    config = config_class(**{**SIZES, **special}, rms_norm_eps=1e-5, initializer_range=0.2, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or "bias" in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return model


def write_checkpoint(path, model, family="llama", dtype="float32", **changes):
    """Write `model` in the unified format, rounded to `dtype`."""
    _, special, of_spec = FAMILIES[family]
    sizes = {**SIZES, **special}
    spec = ModelSpec(
        architecture=changes.pop("architecture", type(model).__name__),
        vocab_size=96, hidden_size=sizes["hidden_size"], num_layers=2, num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"], head_dim=sizes["head_dim"], intermediate_size=48,
        max_position_embeddings=128, norm_eps=1e-5, **{**of_spec, **changes},
    )  # fmt: skip
    state = model.state_dict()
    tensors = {"transformer.vocab_embedding.weight": state["model.embed_tokens.weight"],
               "transformer.ln_f.weight": state["model.norm.weight"]}  # fmt: skip
    if not spec.tied_head:
        tensors["lm_head.weight"] = state["lm_head.weight"]
    for layer in range(2):
        hf, ours = f"model.layers.{layer}.", f"transformer.layers.{layer}."
        for kind in ("weight", "bias"):
            if f"{hf}self_attn.q_proj.{kind}" in state:
                parts = [state[f"{hf}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                tensors[f"{ours}attention.qkv.{kind}"] = torch.cat(parts)
        if f"{hf}self_attn.q_norm.weight" in state:
            tensors[f"{ours}attention.q_layernorm.weight"] = state[f"{hf}self_attn.q_norm.weight"]
            tensors[f"{ours}attention.k_layernorm.weight"] = state[f"{hf}self_attn.k_norm.weight"]
        tensors[f"{ours}attention.dense.weight"] = state[f"{hf}self_attn.o_proj.weight"]
        tensors[f"{ours}input_layernorm.weight"] = state[f"{hf}input_layernorm.weight"]
        tensors[f"{ours}post_layernorm.weight"] = state[f"{hf}post_attention_layernorm.weight"]
        tensors[f"{ours}mlp.fc.weight"] = state[f"{hf}mlp.gate_proj.weight"]
        tensors[f"{ours}mlp.gate.weight"] = state[f"{hf}mlp.up_proj.weight"]
        tensors[f"{ours}mlp.proj.weight"] = state[f"{hf}mlp.down_proj.weight"]
    path.mkdir(parents=True, exist_ok=True)
    rounded = {name: tensor.detach().to(getattr(torch, dtype)).contiguous() for name, tensor in tensors.items()}
    save_file(rounded, path / "weights.safetensors")
    (path / "config.json").write_text(CheckpointConfig(spec, dtype).to_json())
    return Checkpoint(path)


def write_source(path, model):
    """What the fetch stage leaves behind for a Hugging Face folder."""
    model.save_pretrained(path / "source")
    files = [{"path": file.name} for file in sorted((path / "source").iterdir())]
    (path / "source.json").write_text(json.dumps({"kind": "hf", "files": files}))
    return path
