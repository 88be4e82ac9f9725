"""The engine gate: an engine's logits, its generation and its perplexity against the reference that the bundle carries.

Knows no transformers and no build: the same check runs where a bundle is made and where it is deployed.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.reference import Reference
from runtime.quality import LogitFigures, compare_logits, token_nll
from runtime.sampling import SamplingParams
from runtime.scoring import score

ReportProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class Gates:
    """Bounds that an engine must keep.

    min_greedy_agreement: share of positions whose argmax is the reference's, teacher-forced.
    max_mean_kl: nats per token.
    max_perplexity_ratio: engine / reference on the bundle's text.
    max_error_ratio: mean logit difference, engine / transformers in the engine's own dtype.
    max_hard_flips: positions with another argmax although the reference's margin is no near tie.
    """

    min_greedy_agreement: float
    max_mean_kl: float
    max_perplexity_ratio: float
    max_error_ratio: float
    max_hard_flips: int = 0


@dataclass(frozen=True)
class EngineFigures:
    """What verification measured.

    logits: teacher-forced, through `forward`.
    generated_tokens, generated_equal: of a free greedy run of all prompts together, through `step`; a prompt's tokens
        count as equal up to its first difference from the reference.
    hard_divergences: first differences of that run where the reference's margin is no near tie.
    """

    logits: LogitFigures
    generated_tokens: int
    generated_equal: int
    hard_divergences: int
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    error_ratio: float
    seconds: float


def verify_engine(engine: Engine, reference: Reference, report: ReportProgress) -> EngineFigures:
    """Measure an idle engine against the reference of its own weights.

    Raises:
        EnginewrightError: a logit is NaN or infinite, or the engine is too small for the reference's texts.
    """
    started = time.perf_counter()
    num_prompts, num_tokens = reference.top.tokens.shape
    tie_bound = reference.baseline.figures.max_logit_diff

    def forced_logits() -> Iterator[torch.Tensor]:
        for prompt in range(num_prompts):
            report(0.5 * prompt / num_prompts, f"engine logits of prompt {prompt + 1}/{num_prompts}")
            ids = reference.forced_inputs(prompt)
            yield score(engine, ids, first=len(ids) - num_tokens)

    logits = compare_logits(reference.top, forced_logits(), tie_bound)
    report(0.5, "engine generates all prompts together")
    equal, hard = _free_run(engine, reference, tie_bound)
    report(0.75, "engine reads the perplexity text")
    nll = _text_nll(engine, reference)
    report(1.0, "engine verified")
    return EngineFigures(
        logits=logits,
        generated_tokens=num_prompts * num_tokens,
        generated_equal=equal,
        hard_divergences=hard,
        perplexity=math.exp(nll),
        reference_perplexity=math.exp(reference.text_nll_nats),
        perplexity_ratio=math.exp(nll - reference.text_nll_nats),
        error_ratio=logits.mean_logit_diff / reference.baseline.figures.mean_logit_diff,
        seconds=time.perf_counter() - started,
    )


def failed_gates(figures: EngineFigures, gates: Gates) -> list[str]:
    """Every bound that does not hold, one phrase each; empty is a pass. NaN fails."""
    logits = figures.logits
    hard = logits.hard_flips + figures.hard_divergences
    checks = [
        ("greedy agreement", logits.greedy_agreement, ">=", gates.min_greedy_agreement),
        ("mean KL (nats)", logits.mean_kl_nats, "<=", gates.max_mean_kl),
        ("perplexity ratio", figures.perplexity_ratio, "<=", gates.max_perplexity_ratio),
        ("error ratio to transformers", figures.error_ratio, "<=", gates.max_error_ratio),
        ("hard flips", hard, "<=", gates.max_hard_flips),
    ]
    return [
        f"{name} is {value:.6g}, the gate is {sign} {bound:g}"
        for name, value, sign, bound in checks
        if not (value >= bound if sign == ">=" else value <= bound)
    ]


def require_gates(figures: EngineFigures, gates: Gates) -> None:
    """Raise the one line that says which gates failed.

    Raises:
        EnginewrightError: a gate failed.
    """
    if failures := failed_gates(figures, gates):
        raise EnginewrightError(f"the engine failed its gate: {'; '.join(failures)}; see the report for every figure")


def figures_json(figures: EngineFigures, gates: Gates) -> dict[str, Any]:
    """The report of one engine, for a JSON file."""
    failures = failed_gates(figures, gates)
    return {"passed": not failures, "failures": failures, "gates": asdict(gates), "figures": asdict(figures)}


def _free_run(engine: Engine, reference: Reference, tie_bound: float) -> tuple[int, int]:
    """Tokens equal before each prompt's first difference, and first differences that are no near tie."""
    num_tokens = reference.top.tokens.shape[1]
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    requests = [engine.add(prompt, params) for prompt in reference.prompts]
    while engine.has_work:
        engine.step()
    equal = hard = 0
    for prompt, request in enumerate(requests):
        expected = reference.top.tokens[prompt].tolist()
        pairs = zip(request.output_ids, expected, strict=True)
        first = next((i for i, (got, wanted) in enumerate(pairs) if got != wanted), num_tokens)
        equal += first
        if first < num_tokens:
            best, second = reference.top.values[prompt, first, :2].tolist()
            hard += best - second >= 2 * tie_bound
    return equal, hard


def _text_nll(engine: Engine, reference: Reference) -> float:
    """Mean negative log-likelihood in nats per predicted token of the text."""
    total, count = 0.0, 0
    for ids in reference.text_windows():
        nll = token_nll(score(engine, ids)[:-1], torch.tensor(ids[1:]))
        total, count = total + float(nll.sum()), count + len(nll)
    return total / count
