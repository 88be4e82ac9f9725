"""FlashInfer's attention over caches laid out as ours, on machines that have it installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from plugins.attention.bench import BLOCK_SIZE, Case, median_ms

FLASHINFER = "FlashInfer"
_WORKSPACE_BYTES = 256 << 20


def flashinfer_us(case: Case, num_layers: int) -> float | None:
    """Microseconds per layer of decoding or of a whole prompt; None for trees and chunks, and without FlashInfer."""
    if find_spec("flashinfer") is None or case.tree or case.rows not in (1, case.context):
        return None
    return median_ms(step_of(case, num_layers, "cuda")) * 1e3 / num_layers


def step_of(case: Case, num_layers: int, device: str) -> Callable[[], list[torch.Tensor]]:
    """What is timed: each layer's attention, planned beforehand where FlashInfer plans on the host."""
    return _decode(case, num_layers, device) if case.rows == 1 else _prefill(case, num_layers, device)


def _decode(case: Case, num_layers: int, device: str) -> Callable[[], list[torch.Tensor]]:
    import flashinfer

    blocks = -(-case.context // BLOCK_SIZE)
    shape = (num_layers, 2, case.batch * blocks, case.num_kv_heads, BLOCK_SIZE, case.head_dim)
    caches = torch.randn(shape, dtype=torch.bfloat16, device=device)
    q = torch.randn(case.batch, case.num_heads, case.head_dim, dtype=torch.bfloat16, device=device)
    starts, pages = (
        numbers.to(device, torch.int32)
        for numbers in (torch.arange(0, case.batch * blocks + 1, blocks), torch.randperm(case.batch * blocks))
    )
    last = torch.full_like(starts[1:], case.context - (blocks - 1) * BLOCK_SIZE)
    workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    sizes = (case.num_heads, case.num_kv_heads, case.head_dim, BLOCK_SIZE)
    wrapper.plan(starts, pages, last, *sizes, q_data_type=q.dtype, kv_data_type=q.dtype)
    return lambda: [wrapper.run(q, (layer[0], layer[1])) for layer in caches]


def _prefill(case: Case, num_layers: int, device: str) -> Callable[[], list[torch.Tensor]]:
    import flashinfer

    assert case.batch == 1
    shape = (num_layers, 2, case.context, case.num_kv_heads, case.head_dim)
    caches = torch.randn(shape, dtype=torch.bfloat16, device=device)
    q = torch.randn(case.rows, case.num_heads, case.head_dim, dtype=torch.bfloat16, device=device)
    attend: Any = flashinfer.single_prefill_with_kv_cache
    return lambda: [attend(q, layer[0], layer[1], causal=True, kv_layout="NHD") for layer in caches]
