"""The stages of a stack: which switches an engine of this target has, each on top of those before it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch

from runtime.backends.base import Backend, EngineLimits
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.recording import CudaRecorder
from runtime.backends.torch_backend import TorchBackend
from runtime.benchmark.plain_decoder import PlainDecoder
from runtime.benchmark.settings import SessionSizes
from runtime.benchmark.stack import Stage
from runtime.engine import Engine
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.kv.cache import KVCache
from runtime.loading import make_backend
from runtime.speculation.loading import Drafting

EAGER = "eager"
PREFILL_BUDGET = 256  # prompt tokens of a step in which others decode

Draft = Callable[[Backend], Drafting]
Backends = list[tuple[str, Callable[[], Backend]]]


def ladder(checkpoint: Checkpoint, plan: EnginePlan, sizes: SessionSizes, draft: Draft | None = None) -> list[Stage]:
    """Stages from plain torch operations, launched one by one, to everything that the plan's target has.

    draft: loads a drafter for the finished backend; without one there is no stage of speculation.
    """
    is_cuda = plan.target == "cuda"
    backends = _cuda_backends(checkpoint, _fitted(plan, sizes)) if is_cuda else _cpu_backends(checkpoint, plan)
    name, load = backends.pop()
    finished = cache(load)  # what comes after differs in the engine alone
    stages = [Stage(each, _engine(load, None, False), records=each != EAGER) for each, load in backends]
    stages.append(Stage(name, _engine(finished, None, False)))
    stages.append(Stage("chunked prefill", _engine(finished, PREFILL_BUDGET, False)))
    stages.append(Stage("prefix reuse", _engine(finished)))
    if draft is not None:
        stages.append(Stage("speculation", _engine(finished, draft=draft)))
    return stages


def _cpu_backends(checkpoint: Checkpoint, plan: EnginePlan) -> Backends:
    return [(EAGER, partial(_plain, checkpoint, replace(plan, linear="torch"), "cpu")),
            ("fused ops", partial(make_backend, checkpoint, plan))]  # fmt: skip


def _cuda_backends(checkpoint: Checkpoint, plan: EnginePlan) -> Backends:
    from runtime.cuda_engine import load_on_gpu
    from runtime.model import layer_steps, whole_step

    dtype = getattr(torch, plan.dtype)

    backends: Backends = [
        (EAGER, partial(_plain, checkpoint, plan, "cuda")),
        ("graph", partial(_plain, checkpoint, plan, "cuda", captured=True)),
        ("fused ops", partial(load_on_gpu, checkpoint, plan, use_whole_step=False)),
    ]
    if whole_step.rows_of(checkpoint.spec, dtype) or layer_steps.most_rows(checkpoint.spec, dtype):
        backends.append(("step kernels", partial(load_on_gpu, checkpoint, plan)))
    return backends


def _engine(
    backend: Callable[[], Backend], prefill_budget: int | None = PREFILL_BUDGET, prefix_reuse: bool = True,
    draft: Draft | None = None,
) -> Callable[[], Engine]:  # fmt: skip
    def load() -> Engine:
        engine = Engine(backend(), prefix_reuse=prefix_reuse, prefill_budget=prefill_budget)
        engine.draft_with(*(draft(engine.backend) if draft else Drafting(None, None)))
        return engine

    return load


def _plain(checkpoint: Checkpoint, plan: EnginePlan, device: str, captured: bool = False) -> Backend:
    """Plain torch operations, launched one after the other or captured."""
    dtype = getattr(torch, plan.dtype)
    decoder = PlainDecoder(checkpoint, dtype, plan.linear, plan.max_seq_len, device)
    cache = KVCache(checkpoint.spec, plan.num_blocks + 1, plan.block_size, dtype, device)
    cache.storage.zero_()
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    if captured:
        return CapturedBackend(decoder, cache, limits, CudaRecorder())
    return TorchBackend(decoder, cache, limits)


def _fitted(plan: EnginePlan, sizes: SessionSizes) -> EnginePlan:
    """With the session's context: a graph of plain operations computes as many keys as its layout holds."""
    blocks_each = -(-sizes.longest // plan.block_size) + 1
    max_seq_len = blocks_each * plan.block_size
    return replace(
        plan, max_seq_len=max_seq_len, max_num_tokens=min(plan.max_num_tokens, max_seq_len),
        max_batch_size=min(plan.max_batch_size, 2 * sizes.wave), num_blocks=2 * sizes.wave * (blocks_each + 4),
    )  # fmt: skip
