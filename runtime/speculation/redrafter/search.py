"""One step of the head's beam search in torch, on any device and in any dtype."""

from typing import NamedTuple

import torch

from plugins.draft_pass import DrawNoise
from plugins.sample.philox import gumbel_noise


class Continuations(NamedTuple):
    """The best continuations, best first. (B, C) each."""

    token_ids: torch.Tensor  # int64
    beams: torch.Tensor  # int64, which beam each goes on from
    parents: torch.Tensor  # int64, that beam's entry of `beam_nodes`
    scores: torch.Tensor  # float32, cumulative log-probability


def best_continuations(
    logits: torch.Tensor,
    beam_scores: torch.Tensor,
    beam_nodes: torch.Tensor,
    vocab_ids: torch.Tensor,
    count: int,
    noise: DrawNoise | None,
    positions: torch.Tensor,
) -> Continuations:
    """Return the C best of all beams' continuations by beam_scores + log_softmax(logits). Ties go to any.

    With noise, logits + T * noise stand in place of the logits: tokens rank by it as they do in the target's draw.

    Args:
        logits: (B, W, V_draft), any float dtype; float32 arithmetic.
        beam_scores: (B, W) float32, cumulative log-probability of each beam.
        beam_nodes: (B, W) int64.
        vocab_ids: (V_draft,) int64, the token of each of the logits.
        count: C; fewer where there are fewer continuations.
        noise: None where every request draws greedily.
        positions: (B,) int64, of the tokens that these logits are of.
    """
    logits, num_draft = logits.float(), len(vocab_ids)
    if noise is not None:
        tokens = vocab_ids.expand(len(logits), -1)
        drawn = gumbel_noise(tokens, *(value.unsqueeze(1) for value in (noise.seed, noise.sample_index, positions)))
        logits = logits + (noise.temperature.unsqueeze(1) * drawn.float()).unsqueeze(1)
    paths = (logits + (beam_scores - torch.logsumexp(logits, -1)).unsqueeze(-1)).flatten(1)
    scores, index = paths.topk(min(count, paths.shape[1]))
    beams = index // num_draft
    return Continuations(vocab_ids[index - beams * num_draft], beams, beam_nodes.gather(1, beams), scores)
