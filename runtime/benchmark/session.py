"""The session that a stack of switches is measured on: two waves of requests over one prefix, and how it went.

The second wave comes while the first decodes, so that everything an engine can be good at counts: long prompts, single
tokens, prompts beside tokens, and what requests have in common.
"""

import time
from typing import NamedTuple

from runtime.benchmark.settings import SessionSizes
from runtime.benchmark.systems import Timings
from runtime.benchmark.workloads import Workload, burst_workload
from runtime.engine import Engine
from runtime.request import Request
from runtime.sampling import SamplingParams

_BRIEF = 8  # tokens


class Session(NamedTuple):
    """The second wave comes when every request of the first has `arrival` tokens."""

    first: Workload
    second: Workload
    arrival: int

    @property
    def alone(self) -> Workload:
        """Its first request, as if there were no other."""
        return Workload(self.first.prompts[:1], self.first.new_tokens[:1])

    @property
    def brief(self) -> "Session":
        """The same prompts with shorter answers, to warm up with."""
        first, second = (
            Workload(wave.prompts, [min(count, _BRIEF) for count in wave.new_tokens])
            for wave in (self.first, self.second)
        )
        return Session(first, second, arrival=1)


class SessionTimes(NamedTuple):
    """total_s: until the last token; ttft_s: per request, from its arrival; pauses_s: between tokens of one request.

    Tokens that reach the host together have one pause before them.
    """

    total_s: float
    ttft_s: list[float]
    pauses_s: list[float]


def make_session(prefix: list[int], own: list[list[int]], sizes: SessionSizes) -> Session:
    """Of real text: the prefix is repeated as far as it must be, requests take turns with what is theirs."""
    shared = (prefix * -(-sizes.prefix_len // len(prefix)))[: sizes.prefix_len]
    prompts = [shared + own[index % len(own)][-sizes.own_len :] for index in range(2 * sizes.wave)]
    return _in_waves(prompts, sizes)


def random_session(vocab_size: int, sizes: SessionSizes) -> Session:
    """Of token ids that are random but the same every time."""
    work = burst_workload(2 * sizes.wave, sizes.prefix_len, sizes.own_len, vocab_size)
    return _in_waves(work.prompts, sizes)


def run_session(engine: Engine, session: Session) -> SessionTimes:
    """Run it on an idle engine, which computes all prefixes itself."""
    engine.forget_prefixes()
    started = time.perf_counter()
    requests = _add(engine, session.first)
    clocks = [_Clock(started) for _ in requests]
    waits = True
    while engine.has_work:
        engine.step()
        now = time.perf_counter()
        for clock, request in zip(clocks, requests, strict=True):
            clock.read(len(request.output_ids), now)
        if waits and all(len(request.output_ids) >= session.arrival for request in requests):
            waits = False
            requests += _add(engine, session.second)
            clocks += [_Clock(now) for _ in session.second.prompts]
    total_s = time.perf_counter() - started
    pauses = [pause for clock in clocks for pause in clock.pauses]
    return SessionTimes(total_s, [clock.ttft_s for clock in clocks], pauses)


def in_batches(first: Timings, second: Timings, arrival: int) -> SessionTimes:
    """What the session is where a batch cannot be joined: the second wave waits until the first has ended."""
    waited_s = sum(first.step_s[arrival - 1 :])
    ttfts = [first.ttft_s, waited_s + second.ttft_s]
    return SessionTimes(first.total_s + second.total_s, ttfts, [*first.step_s, *second.step_s])


class _Clock:
    """When one request got its tokens."""

    def __init__(self, arrived: float) -> None:
        self._arrived = self._last = arrived
        self._num_read = 0
        self.ttft_s = 0.0
        self.pauses: list[float] = []

    def read(self, num_tokens: int, now: float) -> None:
        if num_tokens == self._num_read:
            return
        if self._num_read == 0:
            self.ttft_s = now - self._arrived
        else:
            self.pauses.append(now - self._last)
        self._num_read, self._last = num_tokens, now


def _in_waves(prompts: list[list[int]], sizes: SessionSizes) -> Session:
    counts = [sizes.new_tokens] * sizes.wave
    waves = (Workload(prompts[: sizes.wave], counts), Workload(prompts[sizes.wave :], counts))
    return Session(*waves, arrival=max(1, sizes.new_tokens // 4))


def _add(engine: Engine, work: Workload) -> list[Request]:
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in work.new_tokens]
    return [engine.add(prompt, each) for prompt, each in zip(work.prompts, params, strict=True)]
