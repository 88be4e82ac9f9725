"""What is measured: anything that runs a workload and says when its tokens came."""

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from runtime.benchmark.workloads import Workload
from runtime.engine import Engine
from runtime.sampling import SamplingParams


@dataclass(frozen=True)
class Timings:
    """One run of one workload.

    ttft_s: until every request's first token is on the host. step_s: each step after that.
    num_tokens: the tokens that were asked for; what a padded batch computes past a request's end is no output.
    """

    ttft_s: float
    step_s: list[float]
    num_tokens: int

    @property
    def total_s(self) -> float:
        return self.ttft_s + sum(self.step_s)


class System(Protocol):
    """A way of running a workload, loaded and idle."""

    def run(self, workload: Workload) -> Timings:
        """Run it to its end."""
        ...


class EngineSystem:
    """Our engine, driven as a server would drive it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, workload: Workload) -> Timings:
        self._engine.forget_prefixes()  # every run computes all of its prompts
        requests = []
        marks = [time.perf_counter()]
        for prompt, count in zip(workload.prompts, workload.new_tokens, strict=True):
            requests.append(self._engine.add(prompt, SamplingParams(max_tokens=count, ignore_eos=True)))
        first_tokens_at = 0
        while self._engine.has_work:
            self._engine.step()
            marks.append(time.perf_counter())
            if not first_tokens_at and all(request.output_ids for request in requests):
                first_tokens_at = len(marks) - 1
        steps = [end - start for start, end in pairwise(marks[first_tokens_at:])]
        return Timings(marks[first_tokens_at] - marks[0], steps, sum(workload.new_tokens))
