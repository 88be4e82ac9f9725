"""What a caller asks of one generation."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import EnginewrightError


@dataclass(frozen=True)
class StructuredOutput:
    """What the text must be: any JSON object, or what a JSON schema describes.

    json_schema: a schema, as JSON text.
    """

    json_schema: str = '{"type": "object"}'

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any]) -> "StructuredOutput":
        """Ask for a schema given as an object."""
        return cls(json.dumps(schema))


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a request ends. The default is greedy.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it before a draw.
        top_k: draw among the k most likely tokens; 0 is all.
        top_p: draw among the fewest most likely tokens whose mass reaches it; 1 is all.
        min_p: drop tokens less likely than min_p times the most likely; 0 drops none.
        seed: 64-bit; the same seed gives the same tokens whatever else is running. None draws one.
        n: samples per prompt; sample i differs from the others through the noise alone.
        max_tokens: stop after this many; None goes on to the engine's limit.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end it besides the model's own end tokens; they are not part of the text.
        ignore_eos: go on past the model's end tokens.
        logprobs: report this many most likely tokens per position, and the chosen one; None reports nothing.
            They are log-probabilities of the raw logits, before temperature and filters.
        logit_bias: added to the logits of these token ids, at most 100 either way.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens in prompt or output.
        frequency_penalty: taken off a token's logit for each time it is in the output.
        presence_penalty: taken off a token's logit once it is in the output.
        min_tokens: no end token before this many; stop strings still end the text.
        structured: what the text must be; None is anything.
        speculate: let the engine draft tokens ahead, where it has a drafter and drafting pays; the output is the same.

    Raises:
        EnginewrightError: a value out of its bounds.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_tokens: int = 0
    structured: StructuredOutput | None = None
    speculate: bool = True

    @property
    def has_rules(self) -> bool:
        """Whether logits depend on the text so far, or are changed before a draw."""
        penalties = (self.repetition_penalty - 1.0, self.frequency_penalty, self.presence_penalty)
        return bool(self.logit_bias or self.min_tokens or self.structured or any(penalties))

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        _require("temperature", self.temperature, 0.0 <= self.temperature < float("inf"), "0 or more; 0 is greedy")
        _require("top_k", self.top_k, self.top_k >= 0, "0 or more; 0 keeps all tokens")
        _require("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1; 1 keeps all tokens")
        _require("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 and 1; 0 keeps all tokens")
        _require("n", self.n, 1 <= self.n <= 128, "between 1 and 128")
        _require("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "1 or more")
        _require("logprobs", self.logprobs, self.logprobs is None or 0 <= self.logprobs <= 20, "between 0 and 20")
        for token_id, bias in self.logit_bias.items():
            _require(f"logit_bias[{token_id}]", bias, abs(bias) <= 100.0, "between -100 and 100")
        penalty = self.repetition_penalty
        _require("repetition_penalty", penalty, 0.0 < penalty < math.inf, "above 0; 1 is none")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _require(name, value, -2.0 <= value <= 2.0, "between -2 and 2; 0 is none")
        most = math.inf if self.max_tokens is None else self.max_tokens
        _require("min_tokens", self.min_tokens, 0 <= self.min_tokens <= most, "between 0 and max_tokens")
        ends = self.structured is None or not self.ignore_eos
        _require("ignore_eos", self.ignore_eos, ends, "False with structured output, which an end token ends")
        _require("seed", self.seed, self.seed is None or -(2**63) <= self.seed < 2**63, "a signed 64-bit integer")
        _require("stop", self.stop, all(self.stop), "strings of at least one character")


def _require(name: str, value: object, holds: bool, bound: str) -> None:
    if not holds:
        raise EnginewrightError(f"sampling parameter {name} is {value!r}; it must be {bound}")
