"""Continuations of beams in vectorised torch, on any device."""

import torch

from plugins.sample.philox import gumbel_noise


def draft_select_batched(
    logits: torch.Tensor,
    beam_scores: torch.Tensor,
    beam_nodes: torch.Tensor,
    vocab_ids: torch.Tensor,
    temperature: torch.Tensor | None,
    seed: torch.Tensor | None,
    sample_index: torch.Tensor | None,
    position: torch.Tensor | None,
    token_ids: torch.Tensor,
    beams: torch.Tensor,
    parents: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    logits, num_draft = logits.float(), len(vocab_ids)
    if temperature is not None and seed is not None and sample_index is not None and position is not None:
        tokens = vocab_ids.expand(len(logits), -1)
        noise = gumbel_noise(tokens, *(value.unsqueeze(1) for value in (seed, sample_index, position))).float()
        logits = logits + (temperature.unsqueeze(1) * noise).unsqueeze(1)
    paths = logits + (beam_scores - torch.logsumexp(logits, -1)).unsqueeze(-1)
    best, index = paths.flatten(1).topk(scores.shape[1])
    scores.copy_(best)
    beams.copy_(index // num_draft)
    token_ids.copy_(vocab_ids[index - beams * num_draft])
    parents.copy_(beam_nodes.gather(1, beams))
