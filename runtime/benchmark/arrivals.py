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
from runtime.pacing.measuring import measure_backend
from runtime.pacing.pace import Pace
from runtime.request import Request
from runtime.sampling import SamplingParams

Report = Callable[[float, str], None]

CHUNK_BUDGETS = (8, 16, 32, 64, 128, 256, 512, 1024)
ITL_RATIOS = (1.3, 1.5, 2.0, 4.0, 8.0)
_DECODING_PROMPT = 16  # tokens of those that decode
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
    """One prompt that arrived while others decoded, under a budget of its tokens per step or of what they may take.

    budget: most of its tokens in a step; the engine's limit where `itl_ratio` is what bounds them.
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
    itl_ratio: float | None = None


@dataclass(frozen=True)
class ChunkRow:
    """All repeats of one budget or ratio.

    tokens_per_s: of the prompt and the decodes together, until the prompt's first token.
    step_tokens: of the prompt, in the mean step.
    Inter-token latencies of the running decodes are pooled over repeats, with the prompt and without.
    """

    budget: int
    prompt_len: int
    tokens_per_s: float
    ttft_ms: float
    busy_p99_ms: float
    idle_p99_ms: float
    step_tokens: float
    itl_ratio: float | None = None


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
    ratios: Sequence[float] = ITL_RATIOS,
) -> Iterator[ChunkSample]:
    """Yield what a prompt of `prompt_len` and `num_decoding` running decodes feel.

    Under each budget that fits, then under each ratio, by costs that are measured first, on the idle engine.

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
    ways: list[tuple[str, int, Pace | None]] = [(f"chunks of {budget} tokens", budget, None) for budget in fitting]
    if ratios:
        costs = measure_backend(backend)
        ways += [(f"itl_ratio {ratio:g}", limits.max_num_tokens, Pace(costs, ratio)) for ratio in ratios]
    for index, (name, budget, pace) in enumerate(ways):
        for repeat in range(-1, repeats):
            report((index + max(repeat, 0) / max(repeats, 1)) / len(ways), name)
            sample = _arrival(backend, vocab_size, budget, pace, prompt_len, num_decoding, repeat)
            if repeat >= 0:
                yield sample


def summarise_chunks(samples: Iterable[ChunkSample]) -> list[ChunkRow]:
    """One row per budget and ratio, in order of first appearance."""
    every = list(samples)
    rows = []
    for way in dict.fromkeys((sample.budget, sample.itl_ratio) for sample in every):
        chosen = [sample for sample in every if (sample.budget, sample.itl_ratio) == way]
        rates = [
            (sample.prompt_len + sample.num_decoding * len(sample.busy_s)) / sum(sample.busy_s) for sample in chosen
        ]  # fmt: skip
        busy = [step_s for sample in chosen for step_s in sample.busy_s]
        idle = [step_s for sample in chosen for step_s in sample.idle_s]
        rows.append(
            ChunkRow(
                way[0], chosen[0].prompt_len, median(rates), median(sample.ttft_s for sample in chosen) * 1e3,
                percentile(busy, 0.99) * 1e3, percentile(idle, 0.99) * 1e3,
                sum(sample.prompt_len for sample in chosen) / len(busy), way[1],
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
    backend: Backend, vocab_size: int, budget: int, pace: Pace | None, prompt_len: int, num_decoding: int, repeat: int
) -> ChunkSample:
    """Let decodes run beside the prompt until its first token, then again from their beginning without it."""
    most_steps = prompt_len if pace else -(-prompt_len // budget)
    engine = Engine(backend, prefix_reuse=False, prefill_budget=budget, pace=pace)
    running = _decoding(engine, vocab_size, num_decoding, most_steps)
    (prompt,) = uniform_workload(1, prompt_len, 1, vocab_size).prompts
    arrival = engine.add(prompt, SamplingParams(max_tokens=1, ignore_eos=True))
    busy_s = []
    while not arrival.output_ids:
        busy_s.append(_timed_step(engine))
    _stop(engine, running)
    idle_steps = max(32, len(busy_s))
    engine = Engine(backend, prefix_reuse=False)
    running = _decoding(engine, vocab_size, num_decoding, idle_steps)
    idle_s = [_timed_step(engine) for _ in range(idle_steps)]
    _stop(engine, running)
    ratio = pace.ratio if pace else None
    return ChunkSample(budget, prompt_len, num_decoding, repeat, sum(busy_s), busy_s, idle_s, ratio)


def _decoding(engine: Engine, vocab_size: int, num_decoding: int, num_steps: int) -> list[Request]:
    """Requests that have decoded their first token and go on for `num_steps` and some, or to the end of the context."""
    new_tokens = min(num_steps + 8, engine.backend.limits.max_seq_len - _DECODING_PROMPT)
    work = uniform_workload(num_decoding, _DECODING_PROMPT, new_tokens, vocab_size)
    running = [
        engine.add(ids, SamplingParams(max_tokens=count, ignore_eos=True, speculate=False))
        for ids, count in zip(work.prompts, work.new_tokens, strict=True)
    ]
    while not all(request.output_ids for request in running):
        engine.step()
    return running


def _stop(engine: Engine, running: list[Request]) -> None:
    for request in running:
        engine.finish(request, "cancelled")
    while engine.has_work:
        engine.step()


def _timed_step(engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    return time.perf_counter() - started
