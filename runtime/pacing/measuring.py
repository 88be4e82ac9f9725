"""Runs steps of an idle engine on made-up requests: some that decode and, beside them, a chunk of a prompt."""

import time

import torch

from runtime.backends.base import Backend, EngineLimits
from runtime.batch import PlanRow, StepPlan
from runtime.pacing.costs import ChunkCosts, StepSize, measure_chunks, near_keys

_BUSY_RATIO = 1.5
# A GPU has the next step before the last has ended: of a step alone a good part is the way there and back.
_GPU_RUNS = 8
_GPU_BUDGET_SECONDS = 10.0  # recording a step takes longer than running it


def measure_backend(backend: Backend) -> ChunkCosts:
    """Time a backend that runs no request, with the drafter that it has; what its caches hold is overwritten.

    It has slots for two requests at least: others never have a prompt beside a decode.
    """
    limits, steps = backend.limits, _Steps(backend)
    sizes = limits.max_batch_size, limits.max_num_tokens, _longest(limits)
    if backend.device.type == "cuda":
        return measure_chunks(steps.run, *sizes, _GPU_BUDGET_SECONDS, _GPU_RUNS)
    return measure_chunks(steps.run, *sizes)


def is_current(backend: Backend, costs: ChunkCosts) -> bool:
    """Whether a step of one decode costs about what a stored table says, which a busy machine may have measured."""
    steps, seconds = _Steps(backend), []
    for _ in range(5):
        began = time.perf_counter()
        steps.run(StepSize(1, costs.near_keys))
        seconds.append(time.perf_counter() - began)
    return costs.decode_step(1, costs.near_keys) <= _BUSY_RATIO * min(seconds) / steps.runs_each


def _longest(limits: EngineLimits) -> int:
    return min(limits.max_seq_len, limits.num_blocks * limits.block_size)


class _Steps:
    """Steps of any size on one state."""

    def __init__(self, backend: Backend) -> None:
        self.runs_each = _GPU_RUNS if backend.device.type == "cuda" else 1
        self._backend = backend
        self._state = backend.new_state()
        self._written = {0}
        limits = backend.limits
        most, end = limits.max_num_tokens, min(limits.block_size, limits.max_seq_len)
        for start in range(0, end, most):  # keys that are numbers, in the block that all others are made of
            count = min(most, end - start)
            backend.step(StepPlan([PlanRow(0, [0] * count, start, count, [0], False, None)]), self._state)

    def run(self, size: StepSize) -> None:
        """To its end; on a GPU `_GPU_RUNS` times."""
        rows = [self._row(slot, size.num_keys, 1, True) for slot in range(size.num_requests)]
        if size.chunk_len:
            rows.append(self._row(size.num_requests, size.chunk_keys, size.chunk_len, False))
        plan = StepPlan(rows, copies=self._unwritten(rows))
        for _ in range(self.runs_each):
            self._state.num_tokens[: size.num_requests] = size.num_keys
            handle = self._backend.step(plan, self._state)
            plan = plan._replace(copies=())
        handle.read()
        if self._backend.device.type == "cuda":
            torch.cuda.synchronize(self._backend.device)

    def _row(self, slot: int, num_keys: int, num_tokens: int, decodes: bool) -> PlanRow:
        """A request's share. Its blocks begin where those of a short one would: long ones overlap, to use less."""
        limits = self._backend.limits
        first = slot * -(-near_keys(_longest(limits)) // limits.block_size)
        blocks = [(first + index) % limits.num_blocks for index in range(-(-num_keys // limits.block_size))]
        token_ids = None if decodes else [0] * num_tokens
        return PlanRow(slot, token_ids, num_keys - num_tokens, num_tokens, blocks, decodes, None)

    def _unwritten(self, rows: list[PlanRow]) -> list[tuple[int, int]]:
        """Copies over the rows' blocks that nobody has written to: such memory is one page of zeros, fast to read."""
        new = {block for row in rows for block in row.blocks} - self._written
        self._written |= new
        return [(0, block) for block in sorted(new)]
