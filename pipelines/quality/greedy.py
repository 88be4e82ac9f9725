"""Greedy generation with transformers as an explicit prefill and decode loop, and its teacher-forced counterpart.

What `model.generate` computes without its per-step overhead: one loop makes references and is timed as a baseline.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from transformers import PreTrainedModel as Model


@torch.inference_mode()
def greedy_steps(model: Model, prompts: list[list[int]]) -> Iterator[torch.Tensor]:
    """Yield the next token of every prompt, (B,) int64, step after step and past any end-of-sequence token.

    The first step is the prefill. Prompts of different lengths are padded on the left, as generate does.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    # Without padding no mask is needed, and attention takes its fast causal path.
    is_padded = not bool(mask.all())
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = None
    while True:
        output = model(
            ids,
            attention_mask=mask if is_padded else None,
            position_ids=positions if is_padded else None,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        tokens = output.logits[:, -1].argmax(-1)
        yield tokens
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        if is_padded:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)


def greedy_tokens(model: Model, prompts: list[list[int]], num_tokens: int) -> torch.Tensor:
    """Continue every prompt greedily: (B, num_tokens) int64."""
    steps = list(islice(greedy_steps(model, prompts), num_tokens))
    return torch.stack(steps, dim=1) if steps else torch.empty(len(prompts), 0, dtype=torch.int64)


@torch.inference_mode()
def forced_logits(model: Model, ids: list[int], num_rows: int) -> torch.Tensor:
    """Logits of the last `num_rows` positions of one unpadded pass: (num_rows, V) in the model's dtype."""
    logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False, logits_to_keep=num_rows).logits[0]
    return logits
