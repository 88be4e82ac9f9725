"""Attention of new tokens over the paged KV cache: decode, prefill chunks, draft trees, and all in one batch.

Used in two steps: `plan_attention` once per engine step, because where each request's keys lie is the same in every
layer, then `attention` per layer with that plan.
"""

from typing import NamedTuple

import torch

from plugins.attention.cpu import attention_cpu, plan_attention_cpu
from plugins.attention.cuda import ELEMENTS, attention_cuda, plan_attention_cuda
from plugins.attention.dense import attention_dense, plan_attention_dense
from plugins.library import define, implement

define(
    "attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor[] plan, float scale, Tensor(a!) out) -> ()",
)
implement("attention", "CPU", attention_cpu)


def _attention_on_cuda(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    out: torch.Tensor,
) -> None:
    """Kernels where there are any; float32 and float64 are for tests and comparisons."""
    run = attention_cuda if q.dtype in ELEMENTS else attention_dense
    run(q, k_cache, v_cache, plan, scale, out)


implement("attention", "CUDA", _attention_on_cuda)


class AttentionShape(NamedTuple):
    """What does not change between steps."""

    num_heads: int
    num_kv_heads: int
    block_size: int
    sliding_window: int | None  # a query attends to this many keys, itself included; None is all of them
    head_dim: int


def plan_attention(
    shape: AttentionShape,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    dtype: torch.dtype,
    ancestors: torch.Tensor | None = None,
    num_tokens: int | None = None,
    max_query_len: int | None = None,
) -> list[torch.Tensor]:
    """Lay out one step's work; the result is opaque and valid for every layer of that step.

    Request b has queries query_starts[b] : query_starts[b + 1], which are the last of its context_lens[b] tokens. In a
    chain, query i of L attends to keys 0 .. context_lens[b] - L + i. In a tree of L nodes, node i attends to the
    context_lens[b] - L keys before the tree and to node j of it where bit j of ancestors[b, i] is set; a sliding
    window counts its depth, the number of its ancestors, in place of i.

    Args:
        query_starts: (B + 1,) int64, starts at 0, never falling: a request may have no query.
        context_lens: (B,) int64, tokens in the cache including this step's.
        block_tables: (B, max_blocks) int64, each request's blocks in order; entries past its last block are not read.
        dtype: of the queries.
        ancestors: (B, L) int64 with bit 0 set in every row of a tree; zeros for a chain; None where all are chains.
        num_tokens: T, the last of `query_starts`; where it is given, a CUDA device need not be asked for it.
        max_query_len: no request has more queries; T where it is not given. Known small, it saves launches on CUDA.

    Raises:
        ValueError: a request has more queries than context (not looked for in 16-bit dtypes on CUDA).
        KernelError: a 16-bit dtype on CUDA with a head_dim or block_size that there is no kernel for.
    """
    if query_starts.is_cuda:
        num_tokens = int(query_starts[-1]) if num_tokens is None else num_tokens
        if dtype in ELEMENTS:
            return plan_attention_cuda(
                shape, query_starts, context_lens, block_tables, dtype, ancestors, num_tokens, max_query_len
            )
        return plan_attention_dense(shape, num_tokens, query_starts, context_lens, block_tables, ancestors)
    return plan_attention_cpu(shape, query_starts, context_lens, block_tables, dtype, ancestors)


def attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """Write softmax(scale q k^T) v over each query's visible keys to `out` and return it.

    Query head h reads key/value head h // (N / N_kv). The softmax accumulates in float32 or wider.
    Source: Vaswani et al., "Attention Is All You Need" (2017), equation 1; Ainslie et al., "GQA" (2023).

    Args:
        q: (T, N, D).
        k_cache, v_cache: (num_blocks, N_kv, block_size, D) same dtype, holding this step's keys already.
        plan: from `plan_attention`.
        scale: usually D ** -0.5.
        out: (T, N, D) same dtype.
    """
    torch.ops.enginewright.attention.default(q, k_cache, v_cache, plan, scale, out)
    return out
