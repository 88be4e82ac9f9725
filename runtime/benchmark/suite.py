"""One benchmark run: every workload on every system, taking turns, warm-up apart."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.benchmark.samples import Sample
from runtime.benchmark.settings import SuiteSettings
from runtime.benchmark.systems import System, Timings
from runtime.benchmark.workloads import Workload, mixed_workload, uniform_workload


@dataclass(frozen=True)
class RawRun:
    """One timed run as it was observed, one line of the raw file. prompt_len is 0 for the mixed workload."""

    system: str
    batch_size: int
    prompt_len: int
    repeat: int
    timings: Timings


def run_suite(
    systems: Mapping[str, System], settings: SuiteSettings, vocab_size: int, report: Callable[[float, str], None]
) -> Iterator[RawRun]:
    """Yield every timed run. Which system goes first alternates, so that neither gains from the machine's drift."""
    workloads = _workloads(settings, vocab_size)
    for index, (batch_size, prompt_len, workload) in enumerate(workloads):
        label = f"batch {batch_size}, prompt {prompt_len}" if prompt_len else f"{batch_size} mixed requests"
        for repeat in range(-settings.warmups, settings.repeats):
            done = (index + (repeat + settings.warmups) / (settings.warmups + settings.repeats)) / len(workloads)
            report(done, f"{label}: {'warm-up' if repeat < 0 else f'run {repeat + 1}/{settings.repeats}'}")
            names = list(systems) if repeat % 2 == 0 else list(systems)[::-1]
            for name in names:
                timings = systems[name].run(workload)
                if repeat >= 0:
                    yield RawRun(name, batch_size, prompt_len, repeat, timings)


def to_samples(run: RawRun) -> list[Sample]:
    """The figures of one run: prefill and decode apart, or the mixed workload's throughput."""

    def sample(case: Any, value: float, unit: Any) -> Sample:
        return Sample(run.system, case, run.batch_size, run.prompt_len, run.repeat, value, unit)  # type: ignore[arg-type]

    timings = run.timings
    if run.prompt_len == 0:
        return [sample("mixed", timings.num_tokens / timings.total_s, "tokens/s")]
    # A step may bring several tokens of a request, so it is the tokens after the first that are counted.
    step_s = sum(timings.step_s) / (timings.num_tokens / run.batch_size - 1)
    return [
        sample("prefill", run.batch_size * run.prompt_len / timings.ttft_s, "tokens/s"),
        sample("prefill", timings.ttft_s * 1e3, "ms"),
        sample("decode", run.batch_size / step_s, "tokens/s"),
        sample("decode", step_s * 1e3, "ms"),
    ]


def _workloads(settings: SuiteSettings, vocab_size: int) -> list[tuple[int, int, Workload]]:
    uniform = [
        (batch_size, prompt_len, uniform_workload(batch_size, prompt_len, settings.new_tokens, vocab_size))
        for prompt_len in settings.prompt_lens
        for batch_size in settings.batch_sizes
    ]
    mixed = mixed_workload(settings.mixed_requests, vocab_size, settings.mixed_max_len)
    return [*uniform, (settings.mixed_requests, 0, mixed)]
