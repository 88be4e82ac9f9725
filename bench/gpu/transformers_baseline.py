"""transformers with random weights of the same shape, eagerly and compiled over a static cache."""

import time
from typing import Any

import torch

from runtime.spec import ModelSpec


def load(spec: ModelSpec) -> Any:
    """A causal model on the GPU in bfloat16."""
    import transformers

    scaling = None
    if spec.rope_scaling.kind == "llama3":
        scaling = {
            "rope_type": "llama3", "factor": spec.rope_scaling.factor,
            "original_max_position_embeddings": spec.rope_scaling.original_max_position_embeddings,
            "low_freq_factor": spec.rope_scaling.low_freq_factor,
            "high_freq_factor": spec.rope_scaling.high_freq_factor,
        }  # fmt: skip
    sizes = {
        "vocab_size": spec.vocab_size, "hidden_size": spec.hidden_size, "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads, "num_key_value_heads": spec.num_kv_heads, "head_dim": spec.head_dim,
        "intermediate_size": spec.intermediate_size, "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.norm_eps, "tie_word_embeddings": spec.tied_head,
        "rope_parameters": {"rope_theta": spec.rope_theta, "rope_type": "default"} | (scaling or {}),
    }  # fmt: skip
    kind = transformers.Qwen3Config if spec.qk_norm else transformers.LlamaConfig
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(kind(**sizes), dtype=torch.bfloat16)
    return model.eval()


@torch.inference_mode()
def prefill_seconds(model: Any, prompt_len: int, repeats: int) -> list[float]:
    """Until the first token is on the host; the logits of the last position alone are computed."""
    token_ids = torch.randint(0, 1000, (1, prompt_len), device="cuda")
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model(token_ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


@torch.inference_mode()
def eager_step_seconds(model: Any, batch_size: int, prompt_len: int, steps: int) -> list[float]:
    """Each greedy decode step over a growing cache, until its tokens are on the host."""
    token_ids = torch.randint(0, 1000, (batch_size, prompt_len), device="cuda")
    out = model(token_ids, use_cache=True, logits_to_keep=1)
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        token_ids = out.logits[:, -1:].argmax(-1)
        token_ids.tolist()
        out = model(token_ids, past_key_values=out.past_key_values, use_cache=True)
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


@torch.inference_mode()
def compiled_step_seconds(model: Any, batch_size: int, prompt_len: int, steps: int) -> list[float]:
    """The same over a static cache, with the forward pass compiled to CUDA graphs (mode="reduce-overhead")."""
    import transformers

    cache = transformers.StaticCache(config=model.config, max_cache_len=prompt_len + steps + 16)
    token_ids = torch.randint(0, 1000, (batch_size, prompt_len), device="cuda")
    position = torch.arange(prompt_len, device="cuda")
    logits = model(token_ids, past_key_values=cache, cache_position=position, logits_to_keep=1).logits
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    seconds = []
    for step in range(steps + 6):
        start = time.perf_counter()
        token_ids = logits[:, -1:].argmax(-1)
        token_ids.tolist()
        position = torch.tensor([prompt_len + step], device="cuda")
        logits = forward(token_ids, past_key_values=cache, cache_position=position).logits.clone()
        seconds.append(time.perf_counter() - start)
    return seconds[6:]
