"""Logits of given texts, through the engine's own blocks and forward pass: what verify and perplexity are made of."""

import torch

from runtime.backends.base import EngineLimits
from runtime.batch import Batch
from runtime.engine import Engine


def score(engine: Engine, token_ids: list[int], first: int = 0) -> torch.Tensor:
    """Return the logits that follow each token from `first` on: (len(token_ids) - first, V) float32 or wider.

    They are on the CPU. The text runs alone, in chunks of the engine's own size; its blocks are free again when this
    returns.
    """
    limits = engine.backend.limits
    pool = engine.scheduler.pool
    blocks = pool.allocate(-(-len(token_ids) // limits.block_size))
    try:
        chunks = [
            _chunk(engine, token_ids, start, first, blocks)
            for start in range(0, len(token_ids), limits.max_num_tokens)
        ]  # fmt: skip
    finally:
        pool.release(blocks)
    return torch.cat(chunks)


def _chunk(engine: Engine, token_ids: list[int], start: int, first: int, blocks: list[int]) -> torch.Tensor:
    limits: EngineLimits = engine.backend.limits
    end = min(start + limits.max_num_tokens, len(token_ids))
    device = engine.backend.device
    positions = torch.arange(start, end, device=device)
    batch = Batch(
        token_ids=torch.tensor(token_ids[start:end], device=device),
        positions=positions,
        cache_positions=positions,
        query_starts=torch.tensor([0, end - start], device=device),
        context_lens=torch.tensor([end], device=device),
        block_tables=torch.tensor([blocks], device=device),
        logit_rows=torch.arange(min(max(first - start, 0), end - start), end - start, device=device),
    )
    return engine.backend.forward(batch).logits.cpu()
