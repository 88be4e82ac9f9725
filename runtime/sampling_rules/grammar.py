"""Structured output through llguidance: which tokens may follow so that the text becomes what was asked for.

llguidance is optional; it is imported when a request first asks for structured output.
"""

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from runtime.errors import EnginewrightError
from runtime.sampling import StructuredOutput
from runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_NUM_KEPT = 64  # compiled grammars
# Without a bound a model may go on with spaces until it runs out of tokens.
_WHITESPACE = r"[ \n\r\t]{0,32}"


class GrammarMask:
    """A grammar along one request's text; a `Rule`."""

    def __init__(self, matcher: "LLMatcher", end_token_id: int) -> None:
        self.failure: str | None = None
        self._matcher = matcher
        self._end_token_id = end_token_id
        self._consumed: list[int] = []

    def __call__(self, logits: torch.Tensor, generated: list[int]) -> torch.Tensor:
        """Forbid what cannot follow `generated`; once the text is complete and can only end, all but end tokens.

        Should the grammar prove too complex on the way, `failure` says so and the end token alone is left.
        """
        self._move_to(generated)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.zeros(max(len(logits), len(bits)), dtype=torch.bool)
        if self._matcher.is_error():
            self.failure = _one_line(self._matcher.get_error())
            allowed[self._end_token_id] = True
        else:
            allowed[: len(bits)] = torch.from_numpy(bits).bool()
        return logits.masked_fill(~allowed[: len(logits)].to(logits.device), -torch.inf)

    def _move_to(self, generated: list[int]) -> None:
        """Bring the matcher to where `generated` leads: further along what it has seen, or back after a failed step."""
        if generated[: len(self._consumed)] != self._consumed:
            self._matcher.reset()
            self._consumed = []
        self._matcher.consume_tokens(generated[len(self._consumed) :])
        self._consumed = generated


class Grammar:
    """A compiled grammar, shared by all requests that ask for it."""

    def __init__(self, matcher: "LLMatcher", end_token_id: int) -> None:
        self._matcher = matcher
        self._end_token_id = end_token_id

    def start(self) -> GrammarMask:
        """Begin an empty text."""
        return GrammarMask(self._matcher.deep_copy(), self._end_token_id)


class GrammarCompiler:
    """Compiles what requests ask for against one tokenizer, and keeps the latest. Any thread may call it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.compile = lru_cache(_NUM_KEPT)(self._compile)

    def _compile(self, structured: StructuredOutput) -> Grammar:
        """Compile a schema; complex ones take up to a second.

        Raises:
            EnginewrightError: llguidance is missing, or cannot use the schema or this tokenizer.
        """
        vocabulary = self._vocabulary
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = LLMatcher.grammar_from_json_schema(
                structured.json_schema, overrides={"whitespace_pattern": _WHITESPACE}
            )
            limits = LLParserLimits(verbose_errors=False)
            matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
            matcher.compute_bitmask()  # finds schemas that no text can satisfy
            problem = matcher.get_error()
        except ValueError as error:
            problem = str(error)
        if problem:
            raise EnginewrightError(f"the JSON schema cannot be used: {_one_line(problem)}; simplify the schema")
        return Grammar(matcher, vocabulary.eos_token)

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        try:
            import llguidance
        except ImportError as error:
            raise EnginewrightError(
                "structured output needs llguidance, which is not installed: pip install llguidance"
            ) from error
        end_token_ids = sorted(self._tokenizer.eos_token_ids)
        if not end_token_ids:
            raise EnginewrightError("structured output needs a model with an end token; this one has none")
        try:
            return llguidance.LLTokenizer(
                self._tokenizer.backend.to_str(),
                n_vocab=self._tokenizer.vocab_size,
                eos_token=end_token_ids,
                slices=llguidance.LLTokenizer.json_slices(),
            )
        except ValueError as error:
            raise EnginewrightError(
                f"structured output cannot use this model's tokenizer: {_one_line(str(error))}"
            ) from error


def _one_line(text: str) -> str:
    line = " ".join(text.replace("<non-verbose/>", "").split())
    return line if len(line) <= 200 else line[:200] + "..."
