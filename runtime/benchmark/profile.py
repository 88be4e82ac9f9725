"""Where an engine's time and memory go: a prefill and decode passes op by op beside their rooflines, memory by use."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch

from runtime.backends.torch_backend import TorchBackend
from runtime.benchmark.ceilings import product_rate, read_bandwidth
from runtime.benchmark.memory_use import MemoryUse, memory_use
from runtime.benchmark.op_costs import Cost, op_costs
from runtime.benchmark.op_times import OpTime, profiled
from runtime.benchmark.settings import ProfileSettings
from runtime.benchmark.workloads import uniform_workload
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.request import Request
from runtime.sampling import SamplingParams
from runtime.spec import ModelSpec

T = TypeVar("T")
Watch: TypeAlias = Callable[[Callable[[], object]], T]
_ONCE_A_PASS = "emit_tokens"


@dataclass(frozen=True)
class OpRow:
    """One op in a pass. floor_us: the least time that this device takes for its bytes and operations, None where that
    is not known; roofline: that time over the measured one."""

    op: str
    calls: float
    us: float
    num_bytes: float | None
    floor_us: float | None

    @property
    def roofline(self) -> float | None:
        return None if self.floor_us is None or not self.us else self.floor_us / self.us


@dataclass(frozen=True)
class PassProfile:
    """One kind of pass. wall_us: of one, timed without the profiler, the host's share in it; the ops' do not add up to
    it where a device runs some side by side or waits for the host."""

    kind: str
    passes: int
    wall_us: float
    ops: list[OpRow]


@dataclass(frozen=True)
class Profile:
    """All of it, with the ceilings that it was compared with."""

    read_bytes_per_s: float
    flop_per_s: float
    prefill: PassProfile
    decode: PassProfile
    memory: MemoryUse


def profile_engine(engine: Engine, spec: ModelSpec, settings: ProfileSettings) -> Profile:
    """Profile an idle engine that decodes plainly.

    Raises:
        EnginewrightError: requests that one step does not hold, or no memory that the profiler could use.
    """
    backend = engine.backend
    assert isinstance(backend, TorchBackend), "a profile names the ops of our own decoder"
    limits, wanted = backend.limits, settings.batch_size * settings.prompt_len
    if wanted > limits.max_num_tokens or settings.batch_size > limits.max_batch_size:
        raise EnginewrightError(
            f"a profile of {settings.batch_size} prompts of {settings.prompt_len} tokens is one step of {wanted}; this "
            f"engine takes {limits.max_num_tokens} tokens and {limits.max_batch_size} requests: profile fewer"
        )
    rates = (read_bandwidth(backend.device), product_rate(backend.device, backend.cache.storage.dtype))
    if backend.device.type == "cuda":
        torch.cuda.empty_cache()  # what the ceilings took is not the engine's
    element, middle = backend.cache.storage.element_size(), settings.prompt_len + settings.new_tokens // 2
    each = settings.batch_size
    costs = {"prefill": op_costs(spec, element, settings.prompt_len, [settings.prompt_len] * each),
             "decode": op_costs(spec, element, 1, [middle] * each)}  # fmt: skip

    def both(watch: Callable[[Callable[[], object]], T]) -> tuple[T, T]:
        return _watch_prefill(engine, spec, settings, watch), _watch_decode(engine, spec, settings, watch)

    both(_seconds)  # whatever is set up at first
    seconds, times = both(_seconds), both(lambda run: profiled(run, backend.device))
    prefill, decode = (
        _pass_profile(kind, wall_s, ops, costs[kind], rates)
        for kind, wall_s, ops in zip(("prefill", "decode"), seconds, times, strict=True)
    )
    return Profile(*rates, prefill, decode, memory_use(backend))


def _watch_prefill(engine: Engine, spec: ModelSpec, settings: ProfileSettings, watch: Watch[T]) -> T:
    """The pass that computes all prompts; no other follows it."""
    engine.forget_prefixes()
    _add(engine, spec, settings, 1)
    return watch(lambda: _step_while(engine, lambda: engine.has_work))


def _watch_decode(engine: Engine, spec: ModelSpec, settings: ProfileSettings, watch: Watch[T]) -> T:
    """Passes of one token each, from the first that the host has not asked for yet."""
    requests = _add(engine, spec, settings, settings.new_tokens)
    _step_while(engine, lambda: not all(request.output_ids for request in requests))
    if engine.backend.device.type == "cuda":
        torch.cuda.synchronize()  # passes under way belong to what was before
    return watch(lambda: _step_while(engine, lambda: engine.has_work))


def _add(engine: Engine, spec: ModelSpec, settings: ProfileSettings, new_tokens: int) -> list[Request]:
    work = uniform_workload(settings.batch_size, settings.prompt_len, new_tokens, spec.vocab_size)
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, speculate=False)
    return [engine.add(prompt, params) for prompt in work.prompts]


def _step_while(engine: Engine, goes_on: Callable[[], bool]) -> None:
    while goes_on():
        engine.step()


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _pass_profile(
    kind: str, wall_s: float, times: Mapping[str, OpTime], costs: Mapping[str, Cost], rates: tuple[float, float]
) -> PassProfile:
    if _ONCE_A_PASS not in times:
        raise EnginewrightError(f"torch's profiler saw no {kind} pass: is another profiler attached to the GPU?")
    passes = times[_ONCE_A_PASS].calls
    rows = []
    for op, spent in times.items():
        cost = costs.get(op)
        floor_us = None if cost is None else cost.seconds(*rates) * 1e6
        num_bytes = None if cost is None else cost.num_bytes
        rows.append(OpRow(op, spent.calls / passes, spent.seconds / passes * 1e6, num_bytes, floor_us))
    return PassProfile(kind, passes, wall_s / passes * 1e6, rows)
