"""Sampling on any device without a wait for the host: whole rows, all tokens ranked, nothing that depends on values."""

import torch

from plugins.sample.philox import gumbel_noise

NO_TOKEN = -1  # of a row of logits that holds NaN


def sample_batched(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    sample_index: torch.Tensor,
    position: torch.Tensor,
    out: torch.Tensor,
) -> None:
    vocab_size = logits.shape[1]
    samples = (temperature > 0).unsqueeze(1)
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1).double().unsqueeze(1)
    ranked, token_ids = torch.sort(scaled, dim=1, descending=True, stable=True)
    ranks = torch.arange(vocab_size, device=logits.device)
    is_kept = (top_k == 0).unsqueeze(1) | (ranks < top_k.unsqueeze(1))
    mass = torch.softmax(ranked.masked_fill(~is_kept, -torch.inf), dim=1).cumsum(dim=1)
    mass_before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
    is_kept &= (mass_before < top_p.double().unsqueeze(1)) | (top_p == 1.0).unsqueeze(1) | (ranks == 0)
    is_kept &= ranked >= ranked[:, :1] + torch.log(min_p.double()).unsqueeze(1)
    noise = gumbel_noise(token_ids, seed.unsqueeze(1), sample_index.unsqueeze(1), position.unsqueeze(1))
    best = (ranked + noise).masked_fill(~is_kept, -torch.inf).argmax(dim=1, keepdim=True)
    drawn = torch.where(samples, token_ids.gather(1, best), logits.argmax(dim=1, keepdim=True))
    out.copy_(torch.where(torch.isnan(logits).any(dim=1), NO_TOKEN, drawn.squeeze(1)))
