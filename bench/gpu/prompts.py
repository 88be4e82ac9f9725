"""Rows of prompts: time to the first token of one, and of what shares a prefix."""

import time
from collections.abc import Iterator

import torch

from bench.gpu import transformers_baseline
from bench.gpu.lines import EAGER, OURS, REPEATS, Line, ceiling_lines, engine_plan, free, make_backend, prefill_line
from bench.gpu.models import RandomCheckpoint
from bench.gpu.shapes import SHAPES
from runtime.benchmark.arrivals import run_burst
from runtime.benchmark.systems import EngineSystem
from runtime.benchmark.workloads import burst_workload, uniform_workload
from runtime.engine import Engine
from runtime.sampling import SamplingParams
from runtime.spec import ModelSpec

PREFILL_LENS = (128, 512, 2048, 8192)
LONG_PROMPTS = engine_plan(max_batch_size=8, max_seq_len=9216, max_num_tokens=8192, num_blocks=3000)


def prefill(model: str) -> Iterator[Line]:
    """Milliseconds until the first token of one request is on the host."""
    transformers_baseline.start_up()
    return _prefill(SHAPES[model])


def _prefill(spec: ModelSpec) -> Iterator[Line]:
    yield from ceiling_lines(torch.bfloat16)
    free()
    engine = Engine(make_backend(RandomCheckpoint(spec), LONG_PROMPTS), prefix_reuse=False)
    baseline = transformers_baseline.load(spec)
    for length in PREFILL_LENS:
        work = uniform_workload(1, length, 2, spec.vocab_size)
        EngineSystem(engine).run(work)
        for repeat in range(REPEATS):
            yield prefill_line(OURS, length, repeat, EngineSystem(engine).run(work).ttft_s)
        for repeat, seconds in enumerate(transformers_baseline.prefill_seconds(baseline, length, REPEATS)):
            yield prefill_line(EAGER, length, repeat, seconds)


def reuse(model: str) -> Iterator[Line]:
    """First tokens over a shared prefix of 8,192 tokens: one request after another, and eight at once."""
    spec = SHAPES[model]
    backend = make_backend(RandomCheckpoint(spec), LONG_PROMPTS)
    work = uniform_workload(1, 8192 + 64, 2, spec.vocab_size)
    engine = Engine(backend)
    for repeat in range(-1, REPEATS):
        cold = EngineSystem(engine).run(work).ttft_s
        warm = _ttft(engine, work.prompts[0][:8192] + [7] * 64)
        if repeat >= 0:
            for name, seconds in (("cold", cold), ("warm", warm)):
                yield {"metric": "reuse", "system": name, "repeat": repeat, "unit": "ms", "value": seconds * 1e3}
    for sample in run_burst(backend, spec.vocab_size, REPEATS, lambda done, text: None):
        yield {"metric": "burst", "system": "reuse" if sample.prefix_reuse else "none", "repeat": sample.repeat,
               "request": sample.request, "unit": "ms", "value": sample.ttft_s * 1e3}  # fmt: skip
    yield from _warm_burst(Engine(backend), spec.vocab_size)


def _warm_burst(engine: Engine, vocab_size: int) -> Iterator[Line]:
    """The same eight requests at once, over a prefix that an earlier request has left."""
    work = burst_workload(8, 8192, 64, vocab_size)
    for repeat in range(-1, REPEATS):
        prompts = [[*prompt[:8192], repeat + 2, *prompt[8193:]] for prompt in work.prompts]  # else all of it is there
        _ttft(engine, prompts[0][:8192] + [1] * 64)
        start = time.perf_counter()
        requests = [engine.add(prompt, SamplingParams(max_tokens=1, ignore_eos=True)) for prompt in prompts]
        ends: dict[int, float] = {}
        while engine.has_work:
            engine.step()
            for index, request in enumerate(requests):
                if request.output_ids:
                    ends.setdefault(index, time.perf_counter())
        for index, end in ends.items() if repeat >= 0 else ():
            yield {"metric": "burst", "system": "warm", "repeat": repeat, "request": index, "unit": "ms",
                   "value": (end - start) * 1e3}  # fmt: skip


def _ttft(engine: Engine, prompt: list[int]) -> float:
    start = time.perf_counter()
    request = engine.add(prompt, SamplingParams(max_tokens=2, ignore_eos=True))
    while not request.output_ids:
        engine.step()
    seconds = time.perf_counter() - start
    while engine.has_work:
        engine.step()
    return seconds
