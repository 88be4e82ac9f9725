"""The draft pass by the letter, one request and one beam at a time, in float64: the oracle."""

import torch

from plugins.draft_pass import DraftWeights, DrawNoise
from plugins.sample.philox import gumbel_noise
from plugins.tree_pack.reference import tree_pack_reference

Tree = tuple[list[int], list[int], list[int], list[set[int]]]
Beam = tuple[float, int, int, torch.Tensor | None]  # score, its candidate, token, the state before that token


def draft_pass_reference(
    weights: DraftWeights,
    hidden: torch.Tensor,
    root_id: int,
    position: int,
    noise: DrawNoise | None,
    num_nodes: int,
    num_beams: int,
    depth: int,
) -> Tree:
    """Return the tree of one request, as `tree_pack_reference` does.

    Args:
        hidden: (H,)
        noise: of this request, shapes (); None draws greedily.
    """
    ids, parents, scores = draft_candidates(weights, hidden, root_id, position, noise, num_nodes, num_beams, depth)
    return tree_pack_reference(ids, parents, scores, root_id, num_nodes)


def draft_candidates(
    weights: DraftWeights,
    hidden: torch.Tensor,
    root_id: int,
    position: int,
    noise: DrawNoise | None,
    num_nodes: int,
    num_beams: int,
    depth: int,
) -> tuple[list[int], list[int], list[float]]:
    """Return token, parent (-1 is the root) and score of each candidate, the best first at every depth."""
    w = DraftWeights._make(part.double() if isinstance(part, torch.Tensor) else part for part in weights)
    begun = w.context_proj @ hidden.double() + w.context_bias
    beams: list[Beam] = [(0.0, -1, root_id, None)]
    ids: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    for ahead in range(1, depth + 1):
        found = []
        for index, (score, _, token, before) in enumerate(beams):
            state = _advance(w, token, before)
            logs = torch.log_softmax(_logits(w, begun, state) + _noise(weights, noise, position + ahead), 0)
            found += [(score + float(log), index, entry, state) for entry, log in enumerate(logs)]
        found.sort(key=lambda one: (-one[0], one[1], one[2]))
        best = found[: max(num_beams, num_nodes - 1)]
        first = len(ids)
        ids += [int(weights.vocab_ids[entry]) for _, _, entry, _ in best]
        parents += [beams[index][1] for _, index, _, _ in best]
        scores += [score for score, *_ in best]
        beams = [(score, first + rank, ids[first + rank], state)
                 for rank, (score, _, _, state) in enumerate(best[:num_beams])]  # fmt: skip
    return ids, parents, scores


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def _advance(w: DraftWeights, token: int, before: torch.Tensor | None) -> torch.Tensor:
    state = w.rnn_w @ w.embedding[token]
    if before is not None:
        state = state + w.rnn_u @ before
    if before is not None or w.has_silu:
        state = state + w.rnn_bias
    return _silu(state) if w.has_silu else state


def _logits(w: DraftWeights, begun: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    y = begun + w.state_proj @ state
    for block, bias in zip(w.blocks, w.block_biases, strict=True):
        y = y + _silu(block @ y + bias)
    return w.lm_head @ y


def _noise(weights: DraftWeights, noise: DrawNoise | None, position: int) -> torch.Tensor | float:
    if noise is None or float(noise.temperature) == 0:
        return 0.0
    drawn = gumbel_noise(weights.vocab_ids, noise.seed, noise.sample_index, position)
    return float(noise.temperature) * drawn
