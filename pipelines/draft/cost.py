"""What a step of speculation costs on this machine, and what it gains: predicted, and measured."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from pipelines.data import DRAFT_PROMPTS_FILE, encode_prompt, read_prompts
from pipelines.draft.evaluation import greedy_context
from runtime.backends.base import EngineLimits
from runtime.backends.torch_backend import TorchBackend
from runtime.batch import Batch
from runtime.benchmark.speculation import KindPrompt, run_speculation, summarise_speculation
from runtime.engine import Engine
from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.speculation.drafter import Drafter
from runtime.speculation.loading import Drafting
from runtime.speculation.policy import FixedPolicy
from runtime.speculation.redrafter.head_file import TreeStatistics
from runtime.speculation.tree import TreeShape
from runtime.text.tokenizer import Tokenizer

CONTEXT, REPEATS = 128, 9
MAX_SEQ_LEN, BLOCK_SIZE = 512, 32  # of the engine that the speed-up is measured on
NUM_PROMPTS, NEW_TOKENS = 3, 32


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


def measure_speedup(checkpoint: Checkpoint, decoder: Decoder, drafter: Drafter, shape: TreeShape) -> float | None:
    """Tokens per second with trees of `shape` over those without, through the engine, greedily, on a few prompts.

    None where no shipped prompt fits into the context that `decoder` was made for.
    """
    spec, dtype = checkpoint.spec, getattr(torch, checkpoint.config.dtype)
    longest = min(MAX_SEQ_LEN, spec.max_position_embeddings)
    limits = EngineLimits(1, longest, MAX_SEQ_LEN, MAX_SEQ_LEN // BLOCK_SIZE + 2, BLOCK_SIZE)
    engine = Engine(TorchBackend(decoder, KVCache(spec, limits.num_blocks, BLOCK_SIZE, dtype), limits))
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_DIR)
    encoded = [
        KindPrompt(each.kind, encode_prompt(tokenizer, each, chat=True)) for each in read_prompts(DRAFT_PROMPTS_FILE)
    ]
    fitting = [prompt for prompt in encoded if len(prompt.token_ids) + NEW_TOKENS <= longest]
    prompts = fitting[:: max(1, len(fitting) // NUM_PROMPTS)][:NUM_PROMPTS]  # of several kinds
    if not prompts:
        return None
    drafting = Drafting(drafter, FixedPolicy(shape))
    samples = run_speculation(engine, {drafter.name: drafting}, prompts, NEW_TOKENS, 1, lambda done, text: None)
    return next(
        row.ratio for row in summarise_speculation(samples) if (row.drafting, row.kind) == (drafter.name, "all")
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
