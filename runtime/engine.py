"""The engine: requests in, tokens out, one step at a time. Knows no text; see `runtime.llm` for that."""

import secrets
from collections import deque
from typing import NamedTuple

from runtime.backends.base import Backend, TokenHandle, TokenLogprobs
from runtime.errors import EnginewrightError
from runtime.request import FinishReason, Request
from runtime.sampling import SamplingParams
from runtime.scheduler import Scheduler


class NewToken(NamedTuple):
    """A token that a request got in a step; `request.finish_reason` tells whether it was the last."""

    request: Request
    token_id: int
    logprobs: TokenLogprobs | None


class _InFlight(NamedTuple):
    emitting: list[Request]
    handle: TokenHandle


class Engine:
    """Runs requests on a backend. Not thread-safe: one thread calls it."""

    def __init__(self, backend: Backend, eos_token_ids: frozenset[int] = frozenset()) -> None:
        self.backend = backend
        self.scheduler = Scheduler(backend.limits)
        self._eos_token_ids = eos_token_ids
        self._state = backend.new_state()
        self._in_flight: deque[_InFlight] = deque()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    def add(self, prompt_ids: list[int], params: SamplingParams, sample_index: int = 0) -> Request:
        """Queue one sample of a prompt.

        Raises:
            EnginewrightError: an empty prompt, or more tokens than the engine's limits hold.
        """
        max_tokens = self._max_tokens(len(prompt_ids), params)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_token_ids)
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        request = Request(list(prompt_ids), params, seed, sample_index, max_tokens, stop_ids)
        self.scheduler.add(request)
        return request

    def step(self) -> list[NewToken]:
        """Start the next step, then read the one that is `read_lag` steps back."""
        plan = self.scheduler.schedule()
        if plan:
            for request, row in plan:
                if row.start == 0:
                    self._state.admit(row.slot, request.params, request.seed, request.sample_index)
            handle = self.backend.step([row for _, row in plan], self._state)
            self._in_flight.append(_InFlight([request for request, row in plan if row.emits], handle))
        if self._in_flight and (len(self._in_flight) > self.backend.read_lag or not plan):
            return self._read(self._in_flight.popleft())
        return []

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request now, wherever it is: its blocks are free when this returns."""
        self.scheduler.finish(request, reason)

    def _read(self, step: _InFlight) -> list[NewToken]:
        events = []
        result = step.handle.read()
        for request, token_id, logprobs in zip(step.emitting, result.token_ids, result.logprobs, strict=True):
            request.num_in_flight -= 1
            if request.finish_reason is not None:  # ended while this step was in flight
                continue
            request.output_ids.append(token_id)
            if token_id in request.stop_ids:
                self.finish(request, "stop")
            elif len(request.output_ids) == request.max_tokens:
                self.finish(request, "length")
            events.append(NewToken(request, token_id, logprobs))
        return events

    def _max_tokens(self, prompt_len: int, params: SamplingParams) -> int:
        limits = self.backend.limits
        longest = min(limits.max_seq_len, limits.num_blocks * limits.block_size)
        if prompt_len == 0:
            raise EnginewrightError("the prompt is empty; give at least one token")
        if prompt_len >= longest:
            raise EnginewrightError(
                f"the prompt has {prompt_len} tokens; this engine holds {longest}, prompt and output together; "
                "shorten the prompt or compile with a larger max_seq_len"
            )
        if params.max_tokens is None:
            return longest - prompt_len
        if prompt_len + params.max_tokens > longest:
            raise EnginewrightError(
                f"a prompt of {prompt_len} tokens with max_tokens={params.max_tokens} exceeds this engine's {longest} "
                f"tokens; ask for at most {longest - prompt_len}"
            )
        return params.max_tokens
