"""The engine: requests in, tokens out, one step at a time. Knows no text; see `runtime.llm` for that."""

import secrets
import time
from collections import deque
from typing import NamedTuple

from runtime.backends.base import Backend, TokenHandle, TokenLogprobs
from runtime.errors import EnginewrightError
from runtime.kv.prefix_cache import PrefixStats
from runtime.request import FinishReason, Request
from runtime.sampling import SamplingParams
from runtime.scheduler import Schedule, Scheduler
from runtime.speculation.drafter import Drafter
from runtime.speculation.policy import TreePolicy
from runtime.speculation.statistics import SpeculationStatistics


class NewToken(NamedTuple):
    """A token that a request got in a step; `request.finish_reason` tells whether a step's last one ended it."""

    request: Request
    token_id: int
    logprobs: TokenLogprobs | None
    was_drafted: bool  # a drafter proposed it and the target agreed


class _InFlight(NamedTuple):
    schedule: Schedule
    handle: TokenHandle


class Engine:
    """Runs requests on a backend. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        backend: Backend,
        eos_token_ids: frozenset[int] = frozenset(),
        policy: TreePolicy | None = None,
        prefix_reuse: bool = True,
        prefill_budget: int | None = None,
    ) -> None:
        """Make an idle engine.

        policy: which draft trees a step gets; None, or a backend without a drafter, gets none.
        prefix_reuse: whether requests share what they have in common; outputs are the same either way.
        prefill_budget: most tokens of prompts in a step in which others decode: a small one keeps their tokens coming
            evenly while a long prompt arrives, a large one gives it its first token sooner. None is the whole step.
        """
        self.backend = backend
        self.scheduler = Scheduler(backend.limits, prefix_reuse, prefill_budget)
        self.speculation = SpeculationStatistics()
        self._policy = policy if backend.drafter is not None else None
        self._eos_token_ids = eos_token_ids
        self._state = backend.new_state()
        self._in_flight: deque[_InFlight] = deque()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    @property
    def prefix_stats(self) -> PrefixStats:
        return self.scheduler.prefixes.cache.stats

    def add(
        self, prompt_ids: list[int], params: SamplingParams, sample_index: int = 0, cache_salt: str = ""
    ) -> Request:
        """Queue one sample of a prompt. It shares blocks with requests of the same `cache_salt` alone.

        Raises:
            EnginewrightError: an empty prompt, or more tokens than the engine's limits hold.
        """
        max_tokens = self._max_tokens(len(prompt_ids), params)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_token_ids)
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        statistics = SpeculationStatistics(total=self.speculation)
        request = Request(
            list(prompt_ids), params, seed, sample_index, max_tokens, stop_ids, statistics, cache_salt=cache_salt
        )
        self.scheduler.add(request)
        return request

    def draft_with(self, drafter: Drafter | None, policy: TreePolicy | None) -> None:
        """Change who drafts, and how much. Only while no request is in the engine: a drafter has seen all of a text."""
        assert not self.has_work, "the drafter cannot change while requests run"
        self.forget_prefixes()  # of which a new drafter has seen nothing
        self.backend.drafter = drafter
        self._policy = policy if drafter is not None else None

    def step(self) -> list[NewToken]:
        """Start the next step, then read the one that is `read_lag` steps back."""
        shape = self._policy.choose(self.scheduler.num_decoding) if self._policy is not None else None
        schedule = self.scheduler.schedule(shape)
        if schedule.plan.rows:
            self._in_flight.append(_InFlight(schedule, self._run(schedule)))
        if self._in_flight and (len(self._in_flight) > self.backend.read_lag or not schedule.plan.rows):
            return self._read(self._in_flight.popleft())
        return []

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request now, wherever it is: its blocks are free when this returns."""
        self.scheduler.finish(request, reason)

    def forget_prefixes(self) -> None:
        """Give up all blocks kept of requests that have ended, so that later ones compute everything."""
        self.scheduler.prefixes.cache.clear()

    def _run(self, schedule: Schedule) -> TokenHandle:
        try:
            for request in schedule.admitted:
                request.admitted_at = request.admitted_at or time.perf_counter()
                self._state.admit(request)
            return self.backend.step(schedule.plan, self._state)
        except BaseException:  # Ctrl-C too: others go on, and must not build on what was never written
            self.scheduler.restart(schedule)
            raise

    def _read(self, step: _InFlight) -> list[NewToken]:
        events: list[NewToken] = []
        result = step.handle.read()
        requests, plan, _ = step.schedule
        emitting = [(request, row) for request, row in zip(requests, plan.rows, strict=True) if row.emits]
        for (request, row), token_ids, num_drafted, logprobs in zip(emitting, *result, strict=True):
            request.num_in_flight -= plan.most_tokens(row)
            if request.finish_reason is not None:  # it ended while this step was in flight
                continue
            received = self._receive(request, token_ids, logprobs)
            if row.drafts:
                request.statistics.record_draft(num_drafted, len(token_ids) - 1, len(received))
            elif row.token_ids is None:
                request.statistics.record_step()
            events += received
        if plan.shape is not None and self._policy is not None:
            drafted = [len(ids) for (_, row), ids in zip(emitting, result.token_ids, strict=True) if row.drafts]
            self._policy.observe(plan.shape, len(drafted), sum(drafted))
        return events

    def _receive(self, request: Request, token_ids: list[int], logprobs: list[TokenLogprobs] | None) -> list[NewToken]:
        """Append a step's tokens up to the one that ends the request, if one does."""
        events = []
        for index, token_id in enumerate(token_ids):
            request.output_ids.append(token_id)
            if token_id in request.stop_ids:
                self.finish(request, "stop")
            elif len(request.output_ids) == request.max_tokens:
                self.finish(request, "length")
            events.append(
                NewToken(request, token_id, logprobs[index] if logprobs else None, index < len(token_ids) - 1)
            )
            if request.finish_reason is not None:
                break
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
