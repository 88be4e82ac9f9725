"""Speculation against plain decoding: the same prompts on one engine, drafter after drafter, one request at a time."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import median
from typing import NamedTuple

from runtime.engine import Engine
from runtime.formats.attestations import PLAIN_DECODING as PLAIN
from runtime.sampling import SamplingParams
from runtime.speculation.loading import Drafting

_GREEDY = SamplingParams()


class KindPrompt(NamedTuple):
    """A prompt of some kind of text, such as code or prose."""

    kind: str
    token_ids: list[int]


@dataclass(frozen=True)
class SpeculationSample:
    """One prompt decoded once. One line of speculation.jsonl.

    decode_s: from the first token to the last. num_tokens, num_steps: in that time; num_equal: how many leading tokens
    equal plain decoding's of the same run, all of them unless rounding decided a near tie.
    """

    drafting: str
    kind: str
    prompt: int
    repeat: int
    num_tokens: int
    num_steps: int
    num_equal: int
    decode_s: float


@dataclass(frozen=True)
class SpeculationRow:
    """All prompts of one kind, or of "all" kinds, with one drafter.

    accepted_length: tokens per target step. ratio: tokens/s over plain decoding's, median over prompts and repeats of
    the same pair of runs. equal_share: of tokens that equal plain decoding's up to each prompt's first difference.
    """

    drafting: str
    kind: str
    num_prompts: int
    tokens_per_s: float
    ratio: float
    accepted_length: float
    equal_share: float


def run_speculation(
    engine: Engine,
    draftings: Mapping[str, Drafting],
    prompts: list[KindPrompt],
    new_tokens: int,
    repeats: int,
    report: Callable[[float, str], None],
    params: SamplingParams = _GREEDY,
) -> Iterator[SpeculationSample]:
    """Yield every timed run; plain decoding of a prompt comes first, then each drafter's, close together in time.

    params: how answers are drawn, `new_tokens` of them; with a temperature, a seed makes runs comparable.
    """
    everything = {PLAIN: Drafting(None, None), **draftings}
    for repeat in range(-1, repeats):  # the first is a warm-up, over one prompt
        for index, prompt in enumerate(prompts if repeat >= 0 else prompts[:1]):
            report((max(repeat, 0) + index / len(prompts)) / max(repeats, 1), f"{prompt.kind} prompt {index + 1}")
            plain: list[int] = []
            for name, drafting in everything.items():
                engine.draft_with(*drafting)
                tokens, steps, seconds = _decode(engine, prompt.token_ids, replace(params, max_tokens=new_tokens))
                plain = tokens if name == PLAIN else plain
                num_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, plain, strict=False)))
                if repeat >= 0 and steps:
                    yield SpeculationSample(
                        name, prompt.kind, index, repeat, len(tokens) - 1, steps, num_equal - 1, seconds
                    )
    engine.draft_with(None, None)


def summarise_speculation(samples: Iterable[SpeculationSample]) -> list[SpeculationRow]:
    """One row per drafter and kind, in order of first appearance, "all" last."""
    every = list(samples)
    plain_s = {(sample.prompt, sample.repeat): _per_token(sample) for sample in every if sample.drafting == PLAIN}
    rows = []
    for drafting in dict.fromkeys(sample.drafting for sample in every):
        for kind in [*dict.fromkeys(sample.kind for sample in every), "all"]:
            chosen = [sample for sample in every if sample.drafting == drafting and kind in (sample.kind, "all")]
            num_tokens = sum(sample.num_tokens for sample in chosen)
            rows.append(
                SpeculationRow(
                    drafting,
                    kind,
                    len({sample.prompt for sample in chosen}),
                    num_tokens / sum(sample.decode_s for sample in chosen),
                    median(plain_s[sample.prompt, sample.repeat] / _per_token(sample) for sample in chosen),
                    num_tokens / sum(sample.num_steps for sample in chosen),
                    sum(sample.num_equal for sample in chosen) / num_tokens,
                )
            )
    return rows


def _decode(engine: Engine, prompt_ids: list[int], params: SamplingParams) -> tuple[list[int], int, float]:
    """Tokens, target steps after the prefill's, and the seconds they took."""
    request = engine.add(prompt_ids, params)
    while not request.output_ids:
        engine.step()
    began = time.perf_counter()
    while engine.has_work:
        engine.step()
    return request.output_ids, request.statistics.snapshot().num_steps, time.perf_counter() - began


def _per_token(sample: SpeculationSample) -> float:
    return sample.decode_s / sample.num_tokens
