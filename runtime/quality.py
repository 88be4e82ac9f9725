"""How far an engine's logits are from a reference: the figures that verification gates on.

Knows logits and probabilities only. It does not know where the reference came from (pipelines/quality), how it is
stored (runtime/formats/reference.py) or which limits a build sets on the figures (pipelines/stages/verify.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from runtime.errors import EnginewrightError


@dataclass(frozen=True, eq=False)
class TopLogits:
    """What is kept of a reference's logits, for P prompts and N positions of each.

    ids:       (P, N, K) int32, the K most likely tokens, most likely first
    values:    (P, N, K) float32, their raw logits
    logsumexp: (P, N) float64, over the whole vocabulary: exp(values - logsumexp) are probabilities
    tokens:    (P, N) int32, the argmax (on an exact tie the lowest id, which need not be ids[..., 0])
    """

    ids: torch.Tensor
    values: torch.Tensor
    logsumexp: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def from_logits(cls, logits: Iterable[torch.Tensor], top_k: int) -> "TopLogits":
        """Keep the `top_k` best of each row; `logits` yields one (N, V) float32 tensor per prompt."""
        rows = []
        for prompt, row in enumerate(logits):
            _require_finite(row, prompt)
            values, ids = row.float().topk(min(top_k, row.shape[-1]))
            rows.append((ids.int(), values, row.double().logsumexp(-1), row.argmax(-1).int()))
        return cls(*(torch.stack(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class LogitFigures:
    """Differences of logits from a reference, over every position of every prompt.

    mean_kl_nats, max_kl_nats: KL(reference || logits) over the reference's top K tokens plus one bucket for the rest.
        Merging tokens never raises a divergence (data-processing inequality): a lower bound of the full KL.
    mean_logit_diff, max_logit_diff: |logit - reference logit| over the reference's top K tokens, raw: a shift common
        to all logits counts, although no probability depends on it.
    greedy_agreement: share of positions with the same argmax; every position sees the reference's own tokens before it.
    near_tie_flips, hard_flips: positions with another argmax, where the reference's margin of its best token over its
        second is below twice the tie bound, and where it is not.
    max_flip_margin: the largest such margin: how sure the reference was where the argmax differs. 0 without flips.
    """

    num_positions: int
    mean_kl_nats: float
    max_kl_nats: float
    mean_logit_diff: float
    max_logit_diff: float
    greedy_agreement: float
    near_tie_flips: int
    hard_flips: int
    max_flip_margin: float


def compare_logits(expected: TopLogits, logits: Iterable[torch.Tensor], tie_bound: float | None = None) -> LogitFigures:
    """Compare teacher-forced logits with a reference.

    Args:
        expected: the reference.
        logits: one (N, V) tensor of any float dtype per prompt, in the reference's order. Row i predicts token i
            of the continuation: it has seen the prompt and tokens[:i].
        tie_bound: a logit difference that is ordinary for the dtype. None takes the difference measured here, which
            excuses every flip to a token within the reference's top K: right for a baseline, too kind to an engine.

    Raises:
        EnginewrightError: a logit is NaN or infinite, or a shape is not the reference's.
    """
    divergences, differences, flipped = [], [], []
    for prompt, row in enumerate(logits):
        _require_finite(row, prompt)
        if prompt >= len(expected.ids) or row.shape[:-1] != expected.tokens.shape[1:]:
            raise EnginewrightError(
                f"logits of prompt {prompt} have shape {tuple(row.shape)}, the reference has "
                f"{tuple(expected.tokens.shape)} prompts and positions; compare an engine with its own reference"
            )
        ids = expected.ids[prompt].long()
        differences.append((row.gather(-1, ids).double() - expected.values[prompt].double()).abs())
        divergences.append(_bucketed_kl(expected.values[prompt], expected.logsumexp[prompt], ids, row))
        flipped.append(row.argmax(-1) != expected.tokens[prompt])
    if len(flipped) != len(expected.tokens):
        raise EnginewrightError(f"logits of {len(flipped)} prompts, the reference has {len(expected.tokens)}")

    kl, diff, flips = torch.stack(divergences), torch.stack(differences), torch.stack(flipped)
    bound = float(diff.max()) if tie_bound is None else tie_bound
    margins = expected.values[..., 0] - expected.values[..., 1]
    near_tie = margins < 2 * bound
    return LogitFigures(
        num_positions=kl.numel(),
        mean_kl_nats=float(kl.mean()),
        max_kl_nats=float(kl.max()),
        mean_logit_diff=float(diff.mean()),
        max_logit_diff=float(diff.max()),
        greedy_agreement=float((~flips).double().mean()),
        near_tie_flips=int((flips & near_tie).sum()),
        hard_flips=int((flips & ~near_tie).sum()),
        max_flip_margin=float((margins * flips).max()),
    )


def full_kl(expected: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(expected || logits) in nats over the whole vocabulary, (..., V) logits -> (...) float64."""
    log_p, log_q = expected.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats of each target: (T, V) logits, (T,) int ids -> (T,) float64.

    Raises:
        EnginewrightError: a logit is NaN or infinite.
    """
    _require_finite(logits, prompt=0)
    logits = logits.float()
    chosen = logits.gather(-1, targets.long()[:, None])[:, 0]
    return logits.logsumexp(-1).double() - chosen.double()


def _bucketed_kl(
    values: torch.Tensor, logsumexp: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """values, ids: (N, K), logsumexp: (N,), logits: (N, V) -> (N,) float64; bucket K holds every other token."""
    p_top = (values.double() - logsumexp[:, None]).exp()
    p = torch.cat([p_top, (1 - p_top.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)
    log_q = logits.double().log_softmax(-1)
    rest = log_q.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    # An empty bucket (K = V) has log q = -inf against a p of mere rounding noise: keep their product near 0.
    log_q = torch.cat([log_q.gather(-1, ids), rest.clamp(min=math.log(torch.finfo(torch.float64).tiny))], dim=-1)
    return (torch.xlogy(p, p) - p * log_q).sum(-1)


def _require_finite(logits: torch.Tensor, prompt: int) -> None:
    finite = logits.isfinite().all(-1)
    if not bool(finite.all()):
        position = int(finite.logical_not().nonzero()[0, 0])
        raise EnginewrightError(
            f"prompt {prompt}, position {position}: a logit is NaN or infinite; the weights or the engine are broken"
        )
