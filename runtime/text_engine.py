"""Text over the engine: prompts are encoded, tokens become text as they come, stop strings end a request."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.backends.base import TokenLogprobs
from runtime.engine import Engine, NewToken
from runtime.errors import EnginewrightError
from runtime.request import FinishReason, Request
from runtime.sampling import SamplingParams
from runtime.sampling_rules.grammar import GrammarCompiler
from runtime.speculation.statistics import SpeculationSnapshot
from runtime.text.stream import TextStream
from runtime.text.tokenizer import Tokenizer

Prompt = str | list[int]


@dataclass(eq=False)
class Completion:
    """One sample of one prompt."""

    sample_index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # an end token, if one came, is the last
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # as many as tokens, where asked for
    finish_reason: FinishReason | None = None
    error: str | None = None  # what went wrong, where finish_reason is "error"
    admitted_at: float | None = None  # when it left the queue, by `time.perf_counter`
    speculation: SpeculationSnapshot = field(default_factory=SpeculationSnapshot)  # filled in at the end


@dataclass(eq=False)
class RequestOutput:
    """All samples of one prompt."""

    prompt_ids: list[int]
    completions: list[Completion]

    @property
    def text(self) -> str:
        """Text of the first sample."""
        return self.completions[0].text

    @property
    def finished(self) -> bool:
        return all(completion.finish_reason is not None for completion in self.completions)


class StreamDelta(NamedTuple):
    """What one token added to one sample; `text` is empty while characters or stop strings are incomplete."""

    completion: Completion
    text: str
    token_id: int
    finish_reason: FinishReason | None
    was_drafted: bool = False  # a drafter proposed the token and the target agreed
    logprobs: TokenLogprobs | None = None  # where asked for
    read_at: float = 0.0  # when the host had read its step, by `time.perf_counter`; the same for a step's tokens


class _Sample(NamedTuple):
    completion: Completion
    stream: TextStream


class TextEngine:
    """An engine with a tokenizer. Not thread-safe: one thread calls it."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.grammars = GrammarCompiler(tokenizer)
        self._samples: dict[Request, _Sample] = {}

    @property
    def has_work(self) -> bool:
        return self.engine.has_work

    def submit(self, prompt: Prompt, params: SamplingParams, cache_salt: str = "") -> RequestOutput:
        """Queue a prompt (text, or token ids); `step` fills in the result.

        cache_salt: prefixes are shared with requests of the same salt alone.

        Raises:
            EnginewrightError: the prompt is empty, too long or names an unknown token, or a parameter does not fit the
                model; nothing is queued then.
        """
        prompt_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else self._checked(prompt)
        grammar = self.grammars.compile(params.structured) if params.structured is not None else None
        completions = [Completion(index) for index in range(params.n)]
        for completion in completions:
            request = self.engine.add(prompt_ids, params, completion.sample_index, cache_salt, grammar)
            self._samples[request] = _Sample(completion, TextStream(self.tokenizer, prompt_ids, params.stop))
        return RequestOutput(prompt_ids, completions)

    def step(self) -> list[StreamDelta]:
        """Run one engine step and return what it added."""
        # A stop string ends a request here, behind the engine's back: the rest of that step's tokens are dropped.
        events = self.engine.step()
        read_at = time.perf_counter()
        return [self._receive(event, read_at) for event in events if event.request in self._samples]

    def cancel(self, output: RequestOutput) -> None:
        """Stop what is left of a prompt; its blocks are free when this returns."""
        for request, sample in list(self._samples.items()):
            if sample.completion in output.completions:
                self.engine.finish(request, "cancelled")
                self._close(request, "cancelled")

    def _checked(self, prompt_ids: list[int]) -> list[int]:
        last = self.engine.backend.vocab_size - 1
        longest = self.engine.backend.limits.max_seq_len  # the engine refuses what is longer
        if outside := [token_id for token_id in prompt_ids[:longest] if not 0 <= token_id <= last]:
            raise EnginewrightError(f"the prompt has token {outside[0]}; this model's tokens are 0 to {last}")
        return prompt_ids

    def _receive(self, event: NewToken, read_at: float) -> StreamDelta:
        request = event.request
        completion, stream = self._samples[request]
        completion.admitted_at = request.admitted_at
        completion.token_ids.append(event.token_id)
        if event.logprobs is not None:
            completion.logprobs.append(event.logprobs)
        text, finish_reason = "", event.finish_reason
        if event.token_id not in request.stop_ids:
            text, stopped = stream.push(event.token_id)
            if stopped:
                self.engine.finish(request, "stop")
                finish_reason = "stop"
        if finish_reason is not None:
            text += self._close(request, finish_reason)
        return StreamDelta(completion, text, event.token_id, finish_reason, event.was_drafted, event.logprobs, read_at)

    def _close(self, request: Request, finish_reason: FinishReason) -> str:
        """Settle a finished request and return the text that was held back."""
        completion, stream = self._samples.pop(request)
        rest = stream.finish().text
        completion.text = stream.text
        completion.finish_reason = finish_reason
        completion.error = request.rules.failure if request.rules is not None else None
        completion.speculation = request.statistics.snapshot()
        return rest
