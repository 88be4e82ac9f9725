"""transformers with random weights of the same shape, eagerly and compiled over a static cache.

Where it decodes eagerly, torch's SDPA is kept from cuDNN's attention, which plans anew for every length of the cache:
a step of SmolLM2-135M took 23 ms without it on an H100 and 60 to 110 ms with it, a figure that flatters whatever is
beside it. `as_is=True` leaves the choice to torch.
"""

import time
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from runtime.benchmark.systems import Timings
from runtime.benchmark.workloads import Workload
from runtime.spec import ModelSpec

_COMPILING = 4  # steps in which torch.compile may still be at work


def start_up() -> None:
    """Import what `load` needs, which takes seconds and no GPU."""
    from transformers import LlamaForCausalLM, Qwen3ForCausalLM  # noqa: F401  (a lazy module, which imports by name)


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


def eager_step_seconds(
    model: Any, batch_size: int, prompt_len: int, steps: int, as_is: bool = False
) -> list[float]:  # fmt: skip
    """Each greedy decode step over a growing cache, until its tokens are on the host; the first two are left out."""
    return list(islice(eager_steps(model, batch_size, prompt_len, as_is), 2, steps + 2))


@torch.inference_mode()
def eager_steps(model: Any, batch_size: int, prompt_len: int, as_is: bool = False) -> Iterator[float]:
    """Seconds of each greedy decode step, one after the other."""
    token_ids = torch.randint(0, 1000, (batch_size, prompt_len), device="cuda")
    out = model(token_ids, use_cache=True, logits_to_keep=1)
    while True:
        start = time.perf_counter()
        token_ids = out.logits[:, -1:].argmax(-1)
        token_ids.tolist()
        out = _eager(model, as_is, input_ids=token_ids, past_key_values=out.past_key_values)
        yield time.perf_counter() - start


@torch.inference_mode()
def compiled_steps(model: Any, batch_size: int, prompt_len: int, longest: int) -> Iterator[float]:
    """Seconds of the compilation, then of each greedy decode step over a static cache.

    The forward pass is compiled to CUDA graphs (mode="reduce-overhead"); the compilation's seconds are those of the
    first four steps, in which it happens.
    """
    import transformers

    cache = transformers.StaticCache(config=model.config, max_cache_len=prompt_len + longest)
    token_ids = torch.randint(0, 1000, (batch_size, prompt_len), device="cuda")
    position = torch.arange(prompt_len, device="cuda")
    logits = model(token_ids, past_key_values=cache, cache_position=position, logits_to_keep=1).logits
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    compiling = 0.0
    for step in range(longest - 1):
        start = time.perf_counter()
        token_ids = logits[:, -1:].argmax(-1)
        token_ids.tolist()
        position = torch.tensor([prompt_len + step], device="cuda")
        logits = forward(token_ids, past_key_values=cache, cache_position=position).logits.clone()
        seconds = time.perf_counter() - start
        compiling += seconds if step < _COMPILING else 0.0
        if step >= _COMPILING - 1:
            yield compiling if step == _COMPILING - 1 else seconds


def _eager(model: Any, as_is: bool, **inputs: Any) -> Any:
    """One pass whose last logits are wanted."""
    if as_is:
        return model(**inputs, use_cache=True, logits_to_keep=1)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return model(**inputs, use_cache=True, logits_to_keep=1)


class Batches:
    """Workloads as one batch each, padded on the left to the longest prompt: see runtime.benchmark.systems.System."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.inference_mode()
    def run(self, workload: Workload) -> Timings:
        longest = max(map(len, workload.prompts))
        padded = [[0] * (longest - len(prompt)) + prompt for prompt in workload.prompts]
        real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in workload.prompts]
        marks = [time.perf_counter()]
        token_ids, mask = torch.tensor(padded, device="cuda"), torch.tensor(real, device="cuda")
        positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), None
        for _ in range(max(workload.new_tokens)):
            out = _eager(
                self._model, False, input_ids=token_ids, attention_mask=mask, position_ids=positions,
                past_key_values=cache,
            )  # fmt: skip
            cache, token_ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            token_ids.tolist()
            marks.append(time.perf_counter())
            mask, positions = torch.nn.functional.pad(mask, (0, 1), value=1), positions[:, -1:] + 1
        ttft_s, *step_s = (end - start for start, end in pairwise(marks))
        return Timings(ttft_s, step_s, sum(workload.new_tokens))
