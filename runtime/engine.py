"""The engine: requests in, tokens out, one step at a time. Knows no text; see `runtime.llm` for that."""

import secrets
import time
from collections import deque
from typing import NamedTuple

from runtime.backends.base import Backend, StepResult, TokenHandle, TokenLogprobs
from runtime.batch import PlanRow, StepPlan
from runtime.errors import EnginewrightError
from runtime.kv.prefix_cache import PrefixStats
from runtime.pacing.pace import Pace
from runtime.request import FinishReason, Request
from runtime.sampling import SamplingParams
from runtime.sampling_rules.grammar import Grammar
from runtime.sampling_rules.rules import TextRules
from runtime.scheduler import Schedule, Scheduler
from runtime.speculation.drafter import Drafter
from runtime.speculation.policy import TreePolicy
from runtime.speculation.statistics import SpeculationStatistics


class NewToken(NamedTuple):
    """A token that a request got in a step."""

    request: Request
    token_id: int
    logprobs: TokenLogprobs | None
    was_drafted: bool  # a drafter proposed it and the target agreed
    finish_reason: FinishReason | None  # of the token that ended the request, which may not be its step's first


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
        pace: Pace | None = None,
    ) -> None:
        """Make an idle engine.

        policy: which draft trees a step gets; None, or a backend without a drafter, gets none.
        prefix_reuse: whether requests share what they have in common; outputs are the same either way.
        prefill_budget: most tokens of prompts in a step in which others decode: a small one keeps their tokens coming
            evenly while a long prompt arrives, a large one gives it its first token sooner. None is the whole step.
        pace: the same by time: how much longer such a step may take than its decodes alone would.
        """
        self.backend = backend
        self.scheduler = Scheduler(
            backend.limits, prefix_reuse, prefill_budget, backend.uniform_drafts, backend.kv == "slots", pace
        )
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
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        sample_index: int = 0,
        cache_salt: str = "",
        grammar: Grammar | None = None,
    ) -> Request:
        """Queue one sample of a prompt. It shares blocks with requests of the same `cache_salt` alone.

        grammar: `params.structured`, compiled; whoever knows the text's tokenizer does that.

        Raises:
            EnginewrightError: an empty prompt, more tokens than the engine's limits hold, or a bias of an unknown one.
        """
        assert (grammar is None) == (params.structured is None), "structured output comes with its grammar"
        max_tokens = self._max_tokens(len(prompt_ids), params)
        self._check_bias(params)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_token_ids)
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        statistics = SpeculationStatistics(total=self.speculation)
        request = Request(
            list(prompt_ids), params, seed, sample_index, max_tokens, stop_ids, statistics, cache_salt=cache_salt
        )
        if params.has_rules:
            request.rules = TextRules(params, request.prompt_ids, request.output_ids, stop_ids, grammar)
        self.scheduler.add(request)
        return request

    def draft_with(self, drafter: Drafter | None, policy: TreePolicy | None) -> None:
        """Change who drafts, and how much. Only while no request is in the engine: a drafter has seen all of a text."""
        assert not self.has_work, "the drafter cannot change while requests run"
        self.forget_prefixes()  # of which a new drafter has seen nothing
        self.backend.drafter = drafter
        self._policy = policy if drafter is not None else None

    def step(self) -> list[NewToken]:
        """Start the next step, then read the one that is `read_lag` steps back; one with rules is read at once."""
        shape = self._policy.choose(self.scheduler.num_decoding) if self._policy is not None else None
        schedule = self.scheduler.schedule(shape, self.backend.most_repeats)
        if schedule.plan.rows:
            self._in_flight.append(_InFlight(schedule, self._run(schedule)))
        if schedule.plan.rules:
            return [event for _ in range(len(self._in_flight)) for event in self._read(self._in_flight.popleft())]
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
            self._state.admit(schedule.admitted)
            return self.backend.step(schedule.plan, self._state)
        except BaseException:  # Ctrl-C too: others go on, and must not build on what was never written
            self.scheduler.restart(schedule)
            raise

    def _read(self, step: _InFlight) -> list[NewToken]:
        results = step.handle.read()
        requests, plan, _ = step.schedule
        emitting = [(request, row) for request, row in zip(requests, plan.rows, strict=True) if row.emits]
        for request, row in emitting:
            request.num_in_flight -= plan.most_tokens(row)
        return [event for result in results for event in self._receive_pass(plan, emitting, result)]

    def _receive_pass(
        self, plan: StepPlan, emitting: list[tuple[Request, PlanRow]], result: StepResult
    ) -> list[NewToken]:  # fmt: skip
        events: list[NewToken] = []
        for (request, row), token_ids, num_drafted, logprobs in zip(emitting, *result, strict=True):
            if request.finish_reason is not None:  # it ended while this pass was in flight
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
                self.finish(request, "error" if request.rules and request.rules.failure else "stop")
            elif len(request.output_ids) == request.max_tokens:
                self.finish(request, "length")
            was_drafted = index < len(token_ids) - 1
            token_logprobs = logprobs[index] if logprobs else None
            events.append(NewToken(request, token_id, token_logprobs, was_drafted, request.finish_reason))
            if request.finish_reason is not None:
                break
        return events

    def _check_bias(self, params: SamplingParams) -> None:
        for token_id in params.logit_bias:
            if not 0 <= token_id < self.backend.vocab_size:
                raise EnginewrightError(
                    f"logit_bias names token {token_id}; this model's tokens are 0 to {self.backend.vocab_size - 1}"
                )

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
