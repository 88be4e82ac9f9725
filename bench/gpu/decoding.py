"""Rows of decoding: our engine beside a naive graph and transformers, tokens per second and joules per token."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.gpu import transformers_baseline
from bench.gpu.device import median_seconds
from bench.gpu.energy import measure_energy
from bench.gpu.lines import (
    COMPILED,
    EAGER,
    EAGER_AS_IS,
    NAIVE,
    OURS,
    REPEATS,
    Line,
    ceiling_lines,
    decode_line,
    free,
    make_backend,
)
from bench.gpu.models import RandomCheckpoint
from bench.gpu.naive import NaiveGraph
from bench.gpu.roofline import DECODE_CONTEXT, NEW_TOKENS, PROMPT
from bench.gpu.shapes import SHAPES
from runtime.benchmark.systems import EngineSystem
from runtime.benchmark.workloads import Workload, uniform_workload
from runtime.engine import Engine
from runtime.spec import ModelSpec

ENERGY_PROMPT, ENERGY_TOKENS = 64, 256  # the same context on average, with little of it a prompt's
EAGER_STEPS = 12
_REPLAYS = 100  # of a graph, between two looks at the clock


def decode(model: str, batch_sizes: tuple[int, ...], energy_at: tuple[int, ...] = ()) -> Iterator[Line]:
    """Greedy tokens per second after the first, through the engine; 128 tokens before and 128 after."""
    transformers_baseline.start_up()
    return _decode(SHAPES[model], batch_sizes, energy_at)


def _decode(spec: ModelSpec, batch_sizes: tuple[int, ...], energy_at: tuple[int, ...]) -> Iterator[Line]:
    yield from ceiling_lines()
    checkpoint = RandomCheckpoint(spec)
    yield from _ours(checkpoint, batch_sizes, energy_at)
    free()
    for batch_size in batch_sizes:
        yield from _naive(checkpoint, batch_size, batch_size in energy_at)
        free()
    baseline = transformers_baseline.load(spec)
    for batch_size in batch_sizes:
        yield from _eager(baseline, batch_size, batch_size in energy_at)
    for repeat, seconds in enumerate(
        transformers_baseline.eager_step_seconds(baseline, batch_sizes[0], PROMPT, EAGER_STEPS, as_is=True)
    ):
        yield decode_line(EAGER_AS_IS, batch_sizes[0], repeat, batch_sizes[0] / seconds)


def compiled(model: str) -> Iterator[Line]:
    """transformers over a static cache, compiled, at batch 1; what the compilation takes is its first line."""
    steps = transformers_baseline.compiled_steps(transformers_baseline.load(SHAPES[model]), 1, PROMPT, 200)
    return _compiled(next(steps), steps)


def _compiled(compilation_s: float, steps: Iterator[float]) -> Iterator[Line]:
    yield {"metric": "compilation", "system": COMPILED, "repeat": 0, "unit": "s", "value": compilation_s}
    seconds = [next(steps) for _ in range(40)][10:]
    for repeat in range(REPEATS):
        part = sorted(seconds[repeat * 10 : repeat * 10 + 10])
        yield decode_line(COMPILED, 1, repeat, 1 / part[len(part) // 2])


def _ours(checkpoint: RandomCheckpoint, batch_sizes: tuple[int, ...], energy_at: tuple[int, ...]) -> Iterator[Line]:
    system = EngineSystem(Engine(make_backend(checkpoint)))
    for batch_size in batch_sizes:
        work = uniform_workload(batch_size, PROMPT, NEW_TOKENS, checkpoint.spec.vocab_size)
        system.run(work)
        for repeat in range(REPEATS):
            timings = system.run(work)
            yield decode_line(OURS, batch_size, repeat, batch_size * (NEW_TOKENS - 1) / sum(timings.step_s))
        if batch_size in energy_at:
            longer = uniform_workload(batch_size, ENERGY_PROMPT, ENERGY_TOKENS, checkpoint.spec.vocab_size)
            yield measure_energy(OURS, batch_size, partial(_tokens_of, system, longer))


def _tokens_of(system: EngineSystem, work: Workload) -> int:
    return system.run(work).num_tokens


def _naive(checkpoint: RandomCheckpoint, batch_size: int, with_energy: bool) -> Iterator[Line]:
    naive = NaiveGraph(checkpoint, batch_size, DECODE_CONTEXT)
    for repeat in range(REPEATS):
        yield decode_line(NAIVE, batch_size, repeat, batch_size / median_seconds(naive.step, 3, 20))

    def replays() -> int:
        for _ in range(_REPLAYS):
            naive.step()
        return _REPLAYS * batch_size

    if with_energy:
        yield measure_energy(NAIVE, batch_size, replays)


def _eager(baseline: Any, batch_size: int, with_energy: bool) -> Iterator[Line]:
    for repeat, seconds in enumerate(
        transformers_baseline.eager_step_seconds(baseline, batch_size, PROMPT, EAGER_STEPS)
    ):
        yield decode_line(EAGER, batch_size, repeat, batch_size / seconds)
    if with_energy:
        steps = transformers_baseline.eager_steps(baseline, batch_size, PROMPT)
        yield measure_energy(EAGER, batch_size, lambda: batch_size * bool(next(steps)))
