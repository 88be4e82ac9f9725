"""What requests feel when others arrive: a burst over one prefix, and a long prompt that comes while others decode."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from runtime.backends.base import Backend
from runtime.benchmark.workloads import Workload, burst_workload, uniform_workload
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.request import Request
from runtime.sampling import SamplingParams

Report = Callable[[float, str], None]

CHUNK_BUDGETS = (8, 16, 32, 64, 128, 256, 512, 1024)
BURST_REQUESTS, BURST_PREFIX, BURST_OWN = 8, 8192, 64


@dataclass(frozen=True)
class BurstSample:
    """One request of a burst. ttft_s: from the burst's arrival until its first token is on the host."""

    prefix_reuse: bool
    request: int
    prefix_len: int
    repeat: int
    ttft_s: float


@dataclass(frozen=True)
class ChunkSample:
    """One prompt that arrived while others decoded, under one budget of its tokens per step.

    ttft_s: of the prompt. busy_s: the steps from its arrival to its first token, each of which gave every running
    decode one token; idle_s: the same steps of the same decodes, or more, where no prompt came. What both attend to
    is as long, so that the two differ by the prompt alone.
    """

    budget: int
    prompt_len: int
    num_decoding: int
    repeat: int
    ttft_s: float
    busy_s: list[float]
    idle_s: list[float]


@dataclass(frozen=True)
class ChunkRow:
    """All repeats of one budget. tokens_per_s: of the prompt and the decodes together, until the prompt's first token.

    Inter-token latencies of the running decodes are pooled over repeats, with the prompt and without.
    """

    budget: int
    prompt_len: int
    tokens_per_s: float
    ttft_ms: float
    busy_p99_ms: float
    idle_p99_ms: float


def longest_burst_prefix(backend: Backend) -> int:
    """Tokens that a burst can share on this engine: 8k, or what its context holds beside a request's own tokens."""
    return min(BURST_PREFIX, backend.limits.max_seq_len - BURST_OWN - 1)


def run_burst(backend: Backend, vocab_size: int, repeats: int, report: Report) -> Iterator[BurstSample]:
    """Yield the first-token times of 8 requests that arrive together, with prefix reuse and without, taking turns.

    Raises:
        EnginewrightError: a context too short to share anything.
    """
    prefix_len = longest_burst_prefix(backend)
    if prefix_len < 1:
        raise EnginewrightError(
            f"a burst needs a context of {BURST_OWN + 2} tokens or more; this engine's is {backend.limits.max_seq_len}"
        )
    work = burst_workload(BURST_REQUESTS, prefix_len, BURST_OWN, vocab_size)
    for repeat in range(-1, repeats):  # the first is a warm-up
        for prefix_reuse in (True, False) if repeat % 2 else (False, True):
            done = max(repeat, 0) / max(repeats, 1)
            report(done, f"burst over {prefix_len} tokens, {'with' if prefix_reuse else 'without'} reuse")
            ttfts = _first_tokens(Engine(backend, prefix_reuse=prefix_reuse), work)
            if repeat >= 0:
                for request, ttft_s in enumerate(ttfts):
                    yield BurstSample(prefix_reuse, request, prefix_len, repeat, ttft_s)


def run_chunks(
    backend: Backend,
    vocab_size: int,
    prompt_len: int,
    num_decoding: int,
    repeats: int,
    report: Report,
    budgets: Sequence[int] = CHUNK_BUDGETS,
) -> Iterator[ChunkSample]:
    """Yield what a prompt of `prompt_len` and `num_decoding` running decodes feel, for each budget that fits.

    Raises:
        EnginewrightError: more than the engine holds, or no budget that fits.
    """
    limits = backend.limits
    fitting = [budget for budget in budgets if 0 < budget <= limits.max_num_tokens - num_decoding]
    if not fitting or num_decoding + 1 > limits.max_batch_size:
        raise EnginewrightError(
            f"chunks: budgets {tuple(budgets)} with {num_decoding} decodes; this engine takes {limits.max_num_tokens} "
            f"tokens a step and {limits.max_batch_size} requests, one of them the prompt's: ask for less"
        )
    for index, budget in enumerate(fitting):
        for repeat in range(-1, repeats):
            report((index + max(repeat, 0) / max(repeats, 1)) / len(fitting), f"chunks of {budget} tokens")
            sample = _arrival(backend, vocab_size, budget, prompt_len, num_decoding, repeat)
            if repeat >= 0:
                yield sample


def summarise_chunks(samples: Iterable[ChunkSample]) -> list[ChunkRow]:
    """One row per budget, in order of first appearance."""
    every = list(samples)
    rows = []
    for budget in dict.fromkeys(sample.budget for sample in every):
        chosen = [sample for sample in every if sample.budget == budget]
        rates = [
            (sample.prompt_len + sample.num_decoding * len(sample.busy_s)) / sum(sample.busy_s) for sample in chosen
        ]  # fmt: skip
        busy = [step_s for sample in chosen for step_s in sample.busy_s]
        idle = [step_s for sample in chosen for step_s in sample.idle_s]
        rows.append(
            ChunkRow(
                budget, chosen[0].prompt_len, median(rates), median(sample.ttft_s for sample in chosen) * 1e3,
                percentile(busy, 0.99) * 1e3, percentile(idle, 0.99) * 1e3,
            )
        )  # fmt: skip
    return rows


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def _first_tokens(engine: Engine, work: Workload) -> list[float]:
    started = time.perf_counter()
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in work.new_tokens]
    requests = [engine.add(prompt, each) for prompt, each in zip(work.prompts, params, strict=True)]
    ttfts: dict[int, float] = {}
    while engine.has_work:
        engine.step()
        elapsed = time.perf_counter() - started
        for index, request in enumerate(requests):
            if request.output_ids:
                ttfts.setdefault(index, elapsed)
    return [ttfts[index] for index in range(len(requests))]


def _arrival(
    backend: Backend, vocab_size: int, budget: int, prompt_len: int, num_decoding: int, repeat: int
) -> ChunkSample:  # fmt: skip
    """Let decodes run alone, then again from their beginning with the prompt, to its first token."""
    num_steps = -(-prompt_len // budget)
    idle_steps = max(32, num_steps)
    engine, running = _decoding(backend, vocab_size, budget, num_decoding, idle_steps)
    idle_s = [_timed_step(engine) for _ in range(idle_steps)]
    _stop(engine, running)
    engine, running = _decoding(backend, vocab_size, budget, num_decoding, num_steps)
    (prompt,) = uniform_workload(1, prompt_len, 1, vocab_size).prompts
    arrival = engine.add(prompt, SamplingParams(max_tokens=1, ignore_eos=True))
    busy_s = []
    while not arrival.output_ids:
        busy_s.append(_timed_step(engine))
    _stop(engine, running)
    return ChunkSample(budget, prompt_len, num_decoding, repeat, sum(busy_s), busy_s, idle_s)


def _decoding(
    backend: Backend, vocab_size: int, budget: int, num_decoding: int, num_steps: int
) -> tuple[Engine, list[Request]]:
    """An engine whose requests have decoded their first token and go on for `num_steps` and some."""
    engine = Engine(backend, prefix_reuse=False, prefill_budget=budget)
    work = uniform_workload(num_decoding, 16, num_steps + 8, vocab_size)
    running = [
        engine.add(ids, SamplingParams(max_tokens=count, ignore_eos=True, speculate=False))
        for ids, count in zip(work.prompts, work.new_tokens, strict=True)
    ]
    while not all(request.output_ids for request in running):
        engine.step()
    return engine, running


def _stop(engine: Engine, running: list[Request]) -> None:
    for request in running:
        engine.finish(request, "cancelled")
    while engine.has_work:
        engine.step()


def _timed_step(engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    return time.perf_counter() - started
