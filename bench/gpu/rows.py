"""What is measured: each row takes one process, our engine and its baselines beside each other in it."""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from bench.gpu import transformers_baseline
from bench.gpu.device import Energy, median_seconds, read_bandwidth
from bench.gpu.models import RandomCheckpoint
from bench.gpu.naive import NaiveGraph
from bench.gpu.shapes import SHAPES, streamed_bytes
from runtime.backends.cuda import CudaBackend
from runtime.batch import Batch
from runtime.benchmark.arrivals import run_burst
from runtime.benchmark.systems import EngineSystem
from runtime.benchmark.workloads import uniform_workload
from runtime.cuda_engine import load_on_gpu
from runtime.engine import Engine
from runtime.formats.engine_plan import EnginePlan
from runtime.sampling import SamplingParams

Line = dict[str, Any]
PROMPT, NEW_TOKENS, REPEATS = 128, 128, 3
PREFILL_LENS = (128, 512, 2048, 8192)
TREE_ROWS = 32
LONG_PROMPTS = {"max_batch_size": 8, "max_seq_len": 9216, "max_num_tokens": 8192, "num_blocks": 3000}


def decode(model: str, batch_sizes: tuple[int, ...], hf_steps: int = 6) -> Iterator[Line]:
    """Greedy tokens per second after the first, through the engine; 128 tokens before and 128 after."""
    spec = SHAPES[model]
    yield {"metric": "read_bandwidth", "unit": "bytes/s", "value": read_bandwidth()}
    yield {"metric": "streamed_bytes", "unit": "bytes", "value": streamed_bytes(spec)}
    checkpoint = RandomCheckpoint(spec)
    engine = Engine(_backend(checkpoint))
    for batch_size in batch_sizes:
        work = uniform_workload(batch_size, PROMPT, NEW_TOKENS, spec.vocab_size)
        EngineSystem(engine).run(work)
        for repeat in range(REPEATS):
            with Energy() as energy:
                timings = EngineSystem(engine).run(work)
            tokens = batch_size * (NEW_TOKENS - 1)
            yield _decode("enginewright", batch_size, repeat, tokens / sum(timings.step_s))
            yield {"metric": "energy", "system": "enginewright", "batch_size": batch_size, "repeat": repeat,
                   "unit": "J/token", "value": energy.joules / timings.num_tokens,
                   "seconds": energy.seconds}  # fmt: skip
    del engine
    _free()
    for batch_size in batch_sizes:
        naive = NaiveGraph(checkpoint, batch_size, PROMPT + NEW_TOKENS)
        for repeat in range(REPEATS):
            yield _decode("naive graph", batch_size, repeat, batch_size / median_seconds(naive.step, 3, 20))
        del naive
        _free()
    baseline = transformers_baseline.load(spec) if hf_steps else None
    for batch_size in (batch_sizes[0], batch_sizes[-1]) if baseline is not None else ():
        for repeat, seconds in enumerate(
            transformers_baseline.eager_step_seconds(baseline, batch_size, PROMPT, hf_steps)
        ):
            yield _decode("transformers eager", batch_size, repeat, batch_size / seconds)


def compiled(model: str) -> Iterator[Line]:
    """transformers over a static cache, compiled, at batch 1."""
    baseline = transformers_baseline.load(SHAPES[model])
    for repeat, seconds in enumerate(transformers_baseline.compiled_step_seconds(baseline, 1, PROMPT, 30)):
        yield _decode("transformers compiled", 1, repeat, 1 / seconds)


def prefill(model: str) -> Iterator[Line]:
    """Milliseconds until the first token of one request is on the host."""
    spec = SHAPES[model]
    engine = Engine(_backend(RandomCheckpoint(spec), **LONG_PROMPTS), prefix_reuse=False)
    baseline = transformers_baseline.load(spec)
    for length in PREFILL_LENS:
        work = uniform_workload(1, length, 2, spec.vocab_size)
        EngineSystem(engine).run(work)
        for repeat in range(REPEATS):
            ttft_s = EngineSystem(engine).run(work).ttft_s
            yield _prefill("enginewright", length, repeat, ttft_s)
        for repeat, seconds in enumerate(transformers_baseline.prefill_seconds(baseline, length, REPEATS)):
            yield _prefill("transformers eager", length, repeat, seconds)


def verify(model: str) -> Iterator[Line]:
    """Device time of a pass over a tree of 32 nodes, and over one row, at 256 tokens of context."""
    spec = SHAPES[model]
    backend = _backend(RandomCheckpoint(spec))
    for num_rows in (1, 8, 16, TREE_ROWS, 64):
        run = backend.prepared(partial(backend.forward, _tree_batch(num_rows, 256)))
        for repeat in range(REPEATS):
            yield {"metric": "verify", "system": "enginewright", "rows": num_rows, "repeat": repeat, "unit": "us",
                   "value": median_seconds(run, 5, 20) * 1e6}  # fmt: skip


def long_context(model: str, context_len: int = 65536) -> Iterator[Line]:
    """Decode passes at 64k of context with as many requests as the memory holds; sampling is not in the time."""
    spec = SHAPES[model]
    backend = _backend(RandomCheckpoint(spec), max_batch_size=16, max_seq_len=context_len + 1024, num_blocks=0)
    backend.cache.storage.normal_()
    limits = backend.limits
    blocks_each = -(-(context_len + 256) // limits.block_size)
    batch_size = min(limits.num_blocks // blocks_each, limits.max_batch_size)
    run = backend.prepared(partial(backend.forward, _long_batch(batch_size, context_len, blocks_each)))
    yield {"metric": "kv_bytes", "unit": "bytes", "batch_size": batch_size,
           "value": batch_size * context_len * spec.kv_bytes_per_token(2)}  # fmt: skip
    for repeat in range(REPEATS):
        yield _decode("enginewright", batch_size, repeat, batch_size / median_seconds(run, 3, 3))


def reuse(model: str) -> Iterator[Line]:
    """First tokens over a shared prefix of 8,192 tokens: one request after another, and eight at once."""
    spec = SHAPES[model]
    backend = _backend(RandomCheckpoint(spec), **LONG_PROMPTS)
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


ROWS: dict[str, Callable[[], Iterator[Line]]] = {
    "decode-smollm2-135m": partial(decode, "smollm2-135m", (1, 8, 32, 64)),
    "decode-llama-3.2-1b": partial(decode, "llama-3.2-1b", (1, 8, 32, 64)),
    "decode-qwen3-1.7b": partial(decode, "qwen3-1.7b", (1, 32)),
    "decode-llama-3.1-8b": partial(decode, "llama-3.1-8b", (1, 32)),
    "compiled-smollm2-135m": partial(compiled, "smollm2-135m"),
    "compiled-llama-3.2-1b": partial(compiled, "llama-3.2-1b"),
    "prefill-llama-3.2-1b": partial(prefill, "llama-3.2-1b"),
    "verify-smollm2-135m": partial(verify, "smollm2-135m"),
    "verify-llama-3.2-1b": partial(verify, "llama-3.2-1b"),
    "long-qwen3-1.7b": partial(long_context, "qwen3-1.7b"),
    "reuse-llama-3.2-1b": partial(reuse, "llama-3.2-1b"),
}


def _backend(checkpoint: RandomCheckpoint, **limits: int) -> CudaBackend:
    plan = EnginePlan(
        target="cuda", dtype="bfloat16", linear="torch", block_size=32, kv_cache_fraction=0.95,
        **{"max_batch_size": 64, "max_seq_len": 2048, "max_num_tokens": 2048, "num_blocks": 4096} | limits,
    )  # fmt: skip
    return load_on_gpu(checkpoint, plan)  # type: ignore[arg-type] # weights without files


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _ttft(engine: Engine, prompt: list[int]) -> float:
    start = time.perf_counter()
    request = engine.add(prompt, SamplingParams(max_tokens=2, ignore_eos=True))
    while not request.output_ids:
        engine.step()
    seconds = time.perf_counter() - start
    while engine.has_work:
        engine.step()
    return seconds


def _tree_batch(num_rows: int, past: int) -> Batch:
    """A tree of one chain at batch 1: what it attends to is what any tree of the size does, or more."""
    rows = torch.arange(num_rows, device="cuda")
    chain = torch.tensor([[(1 << (node + 1)) - 1 - (1 << 64 if node == 63 else 0) for node in range(num_rows)]])
    return Batch(
        token_ids=rows, positions=past + rows, cache_positions=past + rows,
        query_starts=torch.tensor([0, num_rows], device="cuda"),
        context_lens=torch.tensor([past + num_rows], device="cuda"),
        block_tables=torch.arange(16, device="cuda").unsqueeze(0), logit_rows=rows, ancestors=chain.cuda(),
    )  # fmt: skip


def _long_batch(batch_size: int, context_len: int, blocks_each: int) -> Batch:
    rows = torch.arange(batch_size, device="cuda")
    position = torch.full_like(rows, context_len - 1)
    return Batch(
        token_ids=rows, positions=position, cache_positions=position,
        query_starts=torch.arange(batch_size + 1, device="cuda"), context_lens=position + 1,
        block_tables=torch.arange(batch_size * blocks_each, device="cuda").view(batch_size, -1), logit_rows=rows,
    )  # fmt: skip


def _decode(system: str, batch_size: int, repeat: int, tokens_per_s: float) -> Line:
    return {"metric": "decode", "system": system, "batch_size": batch_size, "repeat": repeat, "unit": "tokens/s",
            "value": tokens_per_s}  # fmt: skip


def _prefill(system: str, prompt_len: int, repeat: int, seconds: float) -> Line:
    return {"metric": "prefill", "system": system, "prompt_len": prompt_len, "repeat": repeat, "unit": "ms",
            "value": seconds * 1e3}  # fmt: skip
