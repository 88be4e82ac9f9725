"""What a step of speculation costs on this machine, and what it is predicted to gain."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from pipelines.draft.evaluation import greedy_context
from runtime.batch import Batch
from runtime.formats.checkpoint import Checkpoint
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.speculation.drafter import Drafter
from runtime.speculation.redrafter.head_file import TreeStatistics

CONTEXT, REPEATS = 128, 9


class StepCost(NamedTuple):
    """Milliseconds at batch 1: a plain step, the target over a tree's nodes, the drafter."""

    plain_ms: float
    verify_ms: float
    draft_ms: float

    def speedup(self, accepted_length: float) -> float:
        """Predicted tokens per second over those without drafting; the bookkeeping around a step is left out."""
        return accepted_length * self.plain_ms / (self.verify_ms + self.draft_ms)


def measure_cost(checkpoint: Checkpoint, decoder: Decoder, drafter: Drafter, tree: TreeStatistics) -> StepCost:
    """Time each part of a step after `CONTEXT` tokens; medians of `REPEATS`."""
    spec, dtype = checkpoint.spec, getattr(torch, checkpoint.config.dtype)
    cache = KVCache(spec, 1, CONTEXT + 64, dtype)
    cache.storage.zero_()
    tokens = torch.ones(1, CONTEXT, dtype=torch.int64)
    context = greedy_context(tokens, torch.tensor([CONTEXT - 1]), torch.randn(1, spec.hidden_size))
    return StepCost(
        _median_ms(lambda: decoder.forward(_rows(1), cache)),
        _median_ms(lambda: decoder.forward(_rows(tree.num_nodes), cache)),
        _median_ms(lambda: drafter.propose(context, tree.shape)),
    )


def _rows(count: int) -> Batch:
    """One request's `count` new tokens in block 0."""
    positions = torch.arange(CONTEXT, CONTEXT + count)
    return Batch(
        token_ids=torch.ones_like(positions), positions=positions, cache_positions=positions,
        query_starts=torch.tensor([0, count]), context_lens=torch.tensor([CONTEXT + count]),
        block_tables=torch.zeros(1, 1, dtype=torch.int64), logit_rows=torch.arange(count),
    )  # fmt: skip


def _median_ms(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * median(times)
