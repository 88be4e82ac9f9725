"""Rows of single passes, timed on the device: trees to verify, 64k of context, attention beside torch's."""

from collections.abc import Iterator
from functools import partial

import torch

from bench.gpu.device import median_seconds
from bench.gpu.flashinfer_baseline import FLASHINFER, flashinfer_us
from bench.gpu.lines import OURS, REPEATS, Line, ceiling_lines, decode_line, engine_plan, free, make_backend
from bench.gpu.models import RandomCheckpoint
from bench.gpu.roofline import LONG_CONTEXT, VERIFY_CONTEXT
from bench.gpu.shapes import SHAPES
from plugins.attention.bench import CASES, layers_of, measure
from runtime.backends.cuda import OPS
from runtime.batch import Batch

TREE_ROWS = (1, 4, 8, 12, 16, 32, 64)
CUBLAS, SDPA = "ops over cuBLAS", "torch SDPA"
ATTENTION = ("decode b1 1024", "decode b1 32768", "decode b64 4096", "tree 32 b1 1024", "prefill 2048", "prefill 8192")


def verify(model: str) -> Iterator[Line]:
    """Device time of a pass over a tree at 256 tokens of context, as the engine does it, and by cuBLAS and the ops."""
    yield from ceiling_lines()
    backend = make_backend(RandomCheckpoint(SHAPES[model]))
    for num_rows in TREE_ROWS:
        batch = _tree_batch(num_rows, VERIFY_CONTEXT)
        for system, forward in ((OURS, backend.forward), (CUBLAS, partial(backend.forward_on, OPS))):
            run = backend.prepared(partial(forward, batch))
            for repeat in range(REPEATS):
                yield {"metric": "verify", "system": system, "rows": num_rows, "repeat": repeat, "unit": "us",
                       "value": median_seconds(run, 5, 20) * 1e6}  # fmt: skip


def long_context(model: str, context_len: int = LONG_CONTEXT) -> Iterator[Line]:
    """Decode passes at 64k of context with as many requests as the memory holds; sampling is not in the time."""
    yield from ceiling_lines()
    free()
    spec = SHAPES[model]
    plan = engine_plan(max_batch_size=16, max_seq_len=context_len + 1024, num_blocks=0)
    backend = make_backend(RandomCheckpoint(spec), plan)
    backend.cache.storage.normal_()
    limits = backend.limits
    blocks_each = -(-(context_len + 256) // limits.block_size)
    batch_size = min(limits.num_blocks // blocks_each, limits.max_batch_size)
    run = backend.prepared(partial(backend.forward, decode_batch(batch_size, context_len, blocks_each)))
    yield {"metric": "kv_bytes", "unit": "bytes", "batch_size": batch_size,
           "value": batch_size * context_len * spec.kv_bytes_per_token(2)}  # fmt: skip
    for repeat in range(REPEATS):
        yield decode_line(OURS, batch_size, repeat, batch_size / median_seconds(run, 3, 3))


def attention(head_dim: int = 128) -> Iterator[Line]:
    """One layer's attention, 32 query and 8 K/V heads, over cold caches in a graph. torch's SDPA reads them whole."""
    yield from ceiling_lines(torch.bfloat16)
    free()
    for name in ATTENTION:
        (case,) = (case for case in CASES if case.name == name and case.head_dim == head_dim)
        for repeat in range(REPEATS):
            found = measure(case)
            figures = {OURS: found["us"], SDPA: found["sdpa_us"], FLASHINFER: flashinfer_us(case, layers_of(case))}
            for system, value in figures.items():
                if value is None:
                    continue
                yield {"metric": "attention", "system": system, "shape": name, "repeat": repeat, "unit": "us",
                       "value": value}  # fmt: skip
        yield {"metric": "attention_bytes", "shape": name, "unit": "bytes", "value": case.kv_bytes}
        yield {"metric": "attention_flop", "shape": name, "unit": "flop", "value": case.flop}


def decode_batch(batch_size: int, context_len: int, blocks_each: int) -> Batch:
    """Requests that each have one new token, the last of `context_len`."""
    rows = torch.arange(batch_size, device="cuda")
    position = torch.full_like(rows, context_len - 1)
    return Batch(
        token_ids=rows, positions=position, cache_positions=position,
        query_starts=torch.arange(batch_size + 1, device="cuda"), context_lens=position + 1,
        block_tables=torch.arange(batch_size * blocks_each, device="cuda").view(batch_size, -1), logit_rows=rows,
    )  # fmt: skip


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
