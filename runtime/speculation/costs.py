"""Runs steps and drafts of an idle engine on made-up requests, so that their cost can be measured."""

import time
from collections.abc import Callable
from functools import partial

import torch

from runtime.backends.base import Backend
from runtime.batch import Batch
from runtime.speculation.cost_table import CostTable, measure_costs
from runtime.speculation.drafter import DraftContext, Drafter
from runtime.speculation.tree import TreeShape

_CONTEXT = 256  # tokens before the step, where the cache holds so many
_BUSY_RATIO = 1.5
# A GPU has the next step before the last has ended: of a run alone a good part is the way there and back.
_GPU_RUNS = 8
_GPU_ROWS = (1, 4, 8, 12, 16, 24, 32, 64)  # kernels take rows in groups, so costs go up in steps
_GPU_BUDGET_SECONDS = 10.0  # recording a step takes longer than running it


def measure_backend(backend: Backend, drafter: Drafter, shapes: tuple[TreeShape, ...]) -> CostTable:
    """Time a backend that runs no request, and a drafter for it; what their caches hold is overwritten."""
    limits = backend.limits
    steps: dict[tuple[int, int], Callable[[], object]] = {}  # made in the warm-up
    drafts: dict[tuple[int, TreeShape], Callable[[], object]] = {}

    def target_step(batch_size: int, rows: int) -> None:
        if (batch_size, rows) not in steps:
            batch = made_up_batch(backend, batch_size, rows)
            steps[batch_size, rows] = backend.prepared(partial(backend.forward, batch))
        _run(steps[batch_size, rows], backend.device)

    def draft(batch_size: int, shape: TreeShape) -> None:
        if (batch_size, shape) not in drafts:
            context = _context(backend, batch_size, shape)
            drafts[batch_size, shape] = backend.prepared(partial(drafter.propose, context, shape))
        _run(drafts[batch_size, shape], backend.device)

    sizes = shapes, limits.max_batch_size, limits.max_num_tokens
    if backend.device.type == "cuda":
        return measure_costs(target_step, draft, *sizes, _GPU_BUDGET_SECONDS, _GPU_RUNS, rows_each=_GPU_ROWS)
    return measure_costs(target_step, draft, *sizes)


def _run(prepared: Callable[[], object], device: torch.device) -> None:
    """To its end; on a GPU `_GPU_RUNS` times."""
    for _ in range(_GPU_RUNS if device.type == "cuda" else 1):
        prepared()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _blocks(backend: Backend, batch_size: int, rows: int) -> tuple[int, torch.Tensor]:
    """How many tokens come before the step, and the blocks (B, n) of made-up requests; they may share some."""
    limits = backend.limits
    past = max(0, min(_CONTEXT, limits.max_seq_len - rows, limits.num_blocks * limits.block_size - rows))
    num_blocks = -(-(past + rows) // limits.block_size)
    blocks = torch.arange(batch_size * num_blocks, device=backend.device) % limits.num_blocks
    return past, blocks.view(batch_size, num_blocks)


def made_up_batch(backend: Backend, batch_size: int, rows: int) -> Batch:
    """`batch_size` requests with `rows` tokens each, all of which get logits as the nodes of a tree do."""
    past, blocks = _blocks(backend, batch_size, rows)
    device = backend.device
    positions = past + torch.arange(rows, device=device).repeat(batch_size)
    return Batch(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        cache_positions=positions,
        query_starts=torch.arange(batch_size + 1, device=device) * rows,
        context_lens=torch.full((batch_size,), past + rows, device=device),
        block_tables=blocks,
        logit_rows=torch.arange(len(positions), device=device),
    )


def _context(backend: Backend, batch_size: int, shape: TreeShape) -> DraftContext:
    past, blocks = _blocks(backend, batch_size, shape.num_nodes)
    state = backend.new_state()
    slots = torch.arange(batch_size, device=backend.device)
    state.num_tokens[slots] = past + 1
    return state.draft_context(slots, blocks, samples=False)


def is_current(backend: Backend, table: CostTable) -> bool:
    """Whether a plain step costs about what a stored table says, which a busy machine may have measured."""
    step = backend.prepared(partial(backend.forward, made_up_batch(backend, 1, 1)))
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        _run(step, backend.device)
        seconds.append(time.perf_counter() - began)
    runs = _GPU_RUNS if backend.device.type == "cuda" else 1
    return table.target_step(1, 1) <= _BUSY_RATIO * min(seconds) / runs
