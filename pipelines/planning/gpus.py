"""The most tokens per second that a GPU's memory bandwidth allows: a bound, not a promise.

A decode step must read every weight once and the keys and values of every request; nothing is faster than that.
"""

from typing import NamedTuple

from pipelines.planning.sizes import ModelSizes

CONTEXT_TOKENS = 2048  # of each request, at most what the engine holds
BATCH_SIZES = (1, 16)


class GpuType(NamedTuple):
    """A GPU as its vendor's data sheet has it: 1e9 bytes/s, 1e9 bytes."""

    name: str
    bandwidth_gb_per_s: float
    memory_gb: float


GPU_TYPES = (
    GpuType("RTX 3090", 936, 24),
    GpuType("RTX 4090", 1008, 24),
    GpuType("RTX 5090", 1792, 32),
    GpuType("L4", 300, 24),
    GpuType("A10", 600, 24),
    GpuType("L40S", 864, 48),
    GpuType("A100 40GB", 1555, 40),
    GpuType("A100 80GB SXM", 2039, 80),
    GpuType("H100 PCIe", 2000, 80),
    GpuType("H100 SXM", 3350, 80),
    GpuType("H200 SXM", 4800, 141),
    GpuType("B200", 8000, 180),
)


class Bound(NamedTuple):
    """Decode of `batch_size` requests, all together; None where weights and keys do not fit."""

    gpu: str
    batch_size: int
    context_tokens: int
    tokens_per_s: float | None


def decode_bounds(sizes: ModelSizes) -> list[Bound]:
    """tokens/s = batch size x bandwidth / (weights read + batch size x context x KV bytes per token).

    2.5e8 bytes of weights, 2e4 bytes a token, 2048 tokens, 300e9 bytes/s, one request:
    300e9 / (2.5e8 + 2048 * 2e4) = 1,031 tokens/s.
    """
    context = min(CONTEXT_TOKENS, sizes.max_seq_len)
    return [bound(gpu, sizes, batch_size, context) for gpu in GPU_TYPES for batch_size in BATCH_SIZES]


def bound(gpu: GpuType, sizes: ModelSizes, batch_size: int, context_tokens: int) -> Bound:
    kv_bytes = batch_size * context_tokens * sizes.kv_per_token
    if sizes.weights + kv_bytes > gpu.memory_gb * 1e9:
        return Bound(gpu.name, batch_size, context_tokens, None)
    steps_per_s = gpu.bandwidth_gb_per_s * 1e9 / (sizes.read_per_step + kv_bytes)
    return Bound(gpu.name, batch_size, context_tokens, batch_size * steps_per_s)
