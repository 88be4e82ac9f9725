"""The rules of one request: from raw logits and the text so far to the logits that a token is drawn from.

Knows no batch and no tree; `walk` says which row stands after which text.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from runtime.sampling import SamplingParams
from runtime.sampling_rules.grammar import Grammar

Rule = Callable[[torch.Tensor, list[int]], torch.Tensor]  # logits (V,) and the tokens generated so far -> logits (V,)


class TextRules:
    """The rules of one request. Its text is on the host whenever they apply, so its steps are read at once.

    Args:
        prompt_ids, output_ids: the request's own lists; the second grows as steps are read.
        stop_ids: tokens that end the request.
        grammar: what the text must be, compiled.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: list[int],
        output_ids: list[int],
        stop_ids: frozenset[int],
        grammar: Grammar | None,
    ) -> None:
        self._output_ids = output_ids
        self._stop_ids = stop_ids
        self._grammar = grammar.start() if grammar is not None else None
        self._rules: list[Rule] = []
        if params.logit_bias:
            self._rules.append(_bias(params.logit_bias))
        if params.repetition_penalty != 1.0:
            self._rules.append(_repetition_penalty(params.repetition_penalty, prompt_ids))
        if params.frequency_penalty or params.presence_penalty:
            self._rules.append(_count_penalty(params.frequency_penalty, params.presence_penalty))
        if self._grammar is not None:
            self._rules.append(self._grammar)
        if params.min_tokens:
            self._rules.append(_min_tokens(params.min_tokens, sorted(stop_ids)))

    @property
    def failure(self) -> str | None:
        """Why the text cannot go on, if it cannot: its next token is an end token then."""
        return self._grammar.failure if self._grammar is not None else None

    def apply(self, logits: torch.Tensor, path: Sequence[int]) -> torch.Tensor:
        """Return the logits (V,) that choose the token after the request's text and `path`.

        path: tokens that this step has drawn already, down the draft tree. Past an end token nothing changes, as
            nobody reads what is drawn there.
        """
        if self._stop_ids.intersection(path):
            return logits
        generated = [*self._output_ids, *path]
        for rule in self._rules:
            logits = rule(logits, generated)
        return logits


def _bias(biases: Mapping[int, float]) -> Rule:
    def add(logits: torch.Tensor, generated: list[int]) -> torch.Tensor:
        values = torch.tensor(list(biases.values()), dtype=logits.dtype, device=logits.device)
        return logits.index_add(0, torch.tensor(list(biases), device=logits.device), values)

    return add


def _repetition_penalty(penalty: float, prompt_ids: list[int]) -> Rule:
    """Divide positive logits of tokens seen in prompt or output, multiply negative ones. Source: Keskar et al., "CTRL"
    (2019), as Hugging Face has it."""

    def penalise(logits: torch.Tensor, generated: list[int]) -> torch.Tensor:
        seen = torch.tensor(prompt_ids + generated, dtype=torch.int64, device=logits.device).unique()
        values = logits[seen]
        return logits.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))

    return penalise


def _count_penalty(frequency: float, presence: float) -> Rule:
    def penalise(logits: torch.Tensor, generated: list[int]) -> torch.Tensor:
        token_ids = torch.tensor(generated, dtype=torch.int64, device=logits.device)
        counts = torch.bincount(token_ids, minlength=len(logits)).to(logits.dtype)
        return logits - frequency * counts - presence * counts.clamp(max=1)

    return penalise


def _min_tokens(min_tokens: int, stop_ids: list[int]) -> Rule:
    """Forbid end tokens until `min_tokens` are there, unless nothing else may follow."""

    def forbid(logits: torch.Tensor, generated: list[int]) -> torch.Tensor:
        if len(generated) >= min_tokens:
            return logits
        ends = torch.tensor([token for token in stop_ids if 0 <= token < len(logits)], dtype=torch.int64)
        others = logits.index_fill(0, ends.to(logits.device), -torch.inf)
        return others if torch.isfinite(others).any() else logits

    return forbid
