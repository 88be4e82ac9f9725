"""One step of a draft head's beam search: the best continuations of each request's beams, from the head's logits."""

from typing import NamedTuple

import torch

from plugins.draft_select.batched import draft_select_batched
from plugins.draft_select.cuda import draft_select_cuda
from plugins.library import define, implement

define(
    "draft_select(Tensor logits, Tensor beam_scores, Tensor beam_nodes, Tensor vocab_ids, Tensor? temperature, "
    "Tensor? seed, Tensor? sample_index, Tensor? position, Tensor(a!) token_ids, Tensor(b!) beams, "
    "Tensor(c!) parents, Tensor(d!) scores) -> ()"
)
implement("draft_select", "CPU", draft_select_batched)
implement("draft_select", "CUDA", draft_select_cuda)


class DrawNoise(NamedTuple):
    """What the target's own draw depends on, per request (B,); see `plugins.sample`."""

    temperature: torch.Tensor  # float32
    seed: torch.Tensor  # int64, likewise the rest
    sample_index: torch.Tensor
    position: torch.Tensor  # of the token that these logits are of


class Continuations(NamedTuple):
    """The best continuations, best first. (B, C) each."""

    token_ids: torch.Tensor  # int64
    beams: torch.Tensor  # int64, which beam each goes on from
    parents: torch.Tensor  # int64, that beam's entry of `beam_nodes`
    scores: torch.Tensor  # float32, cumulative log-probability


def draft_select(
    logits: torch.Tensor,
    beam_scores: torch.Tensor,
    beam_nodes: torch.Tensor,
    vocab_ids: torch.Tensor,
    count: int,
    noise: DrawNoise | None = None,
) -> Continuations:
    """Return the C best of all beams' continuations by beam_scores + log_softmax(logits).

    With noise, logits + T * noise stand in place of the logits: tokens rank by it as they do in the target's draw. Ties
    go to the earlier beam and then to the earlier token, on CUDA; elsewhere to any.

    Args:
        logits: (B, W, V_draft), any float dtype; float32 arithmetic.
        beam_scores: (B, W) float32, cumulative log-probability of each beam.
        beam_nodes: (B, W) int64.
        vocab_ids: (V_draft,) int64, the token of each of the logits.
        count: C; fewer where there are fewer continuations.
        noise: None where every request draws greedily.
    """
    requests, width, num_draft = logits.shape
    shape = (requests, min(count, width * num_draft))
    token_ids, beams, parents = (vocab_ids.new_empty(shape) for _ in range(3))
    found = Continuations(token_ids, beams, parents, beam_scores.new_empty(shape, dtype=torch.float32))
    torch.ops.enginewright.draft_select.default(
        logits, beam_scores, beam_nodes, vocab_ids, *(noise or (None, None, None, None)), *found
    )
    return found
