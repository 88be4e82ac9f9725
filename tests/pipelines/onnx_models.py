"""Tiny models as graphs on ONNX Runtime, and the same model as our decoder in torch, fed with the same batches."""

from typing import NamedTuple

import torch

from pipelines.onnx.graph import GraphOptions, write_step_model
from runtime.backends.base import EngineLimits
from runtime.backends.slots.backend import OnnxBackend
from runtime.backends.slots.onnx_session import OnnxSession
from runtime.backends.torch_backend import TorchBackend
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder

CACHE_LEN = 192
LIMITS = EngineLimits(max_batch_size=4, max_seq_len=128, max_num_tokens=128, num_blocks=8, block_size=CACHE_LEN)


def onnx_session(checkpoint, folder, dtype, cache_len=CACHE_LEN, *, slices_cache=True):
    folder.mkdir(parents=True, exist_ok=True)
    graph = write_step_model(checkpoint, GraphOptions(dtype, cache_len, slices_cache), folder)
    return OnnxSession(graph, checkpoint.path, checkpoint.spec, num_threads=1)


def onnx_backend(checkpoint, folder, dtype, *, slices_cache=True, limits=LIMITS, drafter=None):
    session = onnx_session(checkpoint, folder, dtype, limits.block_size, slices_cache=slices_cache)
    return OnnxBackend(session, limits, drafter)


def torch_backend(checkpoint, dtype, limits=LIMITS):
    """The reference: our decoder, which other tests hold against transformers, over the same slots."""
    of_torch = getattr(torch, dtype)
    decoder = Decoder(checkpoint, of_torch, "torch", limits.max_seq_len)
    cache = KVCache(checkpoint.spec, limits.num_blocks, limits.block_size, of_torch)
    return TorchBackend(decoder, cache, limits)


class Rows(NamedTuple):
    """New tokens of one request: a chain, or the nodes of a draft tree."""

    block: int
    start: int
    token_ids: list[int]
    parents: list[int] | None = None


def batch_of(rows: list[Rows], logit_rows=None) -> Batch:
    """Pack; every token gets logits where nothing else is asked for."""
    counts = [len(row.token_ids) for row in rows]
    is_tree = any(row.parents for row in rows)
    depths = [_depths(row) for row in rows]
    total = sum(counts)
    return Batch(
        token_ids=torch.tensor([token for row in rows for token in row.token_ids]),
        positions=torch.tensor(
            [row.start + depth for row, of_row in zip(rows, depths, strict=True) for depth in of_row]
        ),
        cache_positions=torch.tensor([row.start + at for row in rows for at in range(len(row.token_ids))]),
        query_starts=torch.tensor([0, *counts]).cumsum(0),
        context_lens=torch.tensor([row.start + len(row.token_ids) for row in rows]),
        block_tables=torch.tensor([[row.block] for row in rows]),
        logit_rows=torch.arange(total) if logit_rows is None else torch.tensor(logit_rows, dtype=torch.int64),
        ancestors=torch.tensor([_ancestors(row, max(counts)) for row in rows]) if is_tree else None,
    )


def _depths(row: Rows) -> list[int]:
    if row.parents is None:
        return list(range(len(row.token_ids)))
    depths = [0]
    for parent in row.parents[1:]:
        depths.append(depths[parent] + 1)
    return depths


def _ancestors(row: Rows, width: int) -> list[int]:
    """Bits of the nodes that each node sees; zeros for a chain."""
    bits = [0] * width
    for node, parent in enumerate(row.parents or []):
        bits[node] = 1 << node | (bits[parent] if node else 0)
    return bits
