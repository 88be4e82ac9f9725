"""The CUDA engine: captured steps over our kernels, on the current device."""

from dataclasses import dataclass

import torch

from plugins.cuda.launch import max_shared_bytes
from plugins.decoder_step.plan import SHARED_BYTES
from runtime.backends.base import EngineLimits
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.recording import CudaRecorder
from runtime.batch import Batch
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput
from runtime.model.whole_step import WholeStep
from runtime.spec import ModelSpec

MOST_REPEATS = 8
ELEMENT_BYTES = 2


@dataclass(frozen=True)
class CudaLimits:
    """What an engine is asked to hold. num_blocks 0: as many as `kv_cache_fraction` of the free memory holds."""

    max_batch_size: int = 64
    max_seq_len: int = 8192
    max_num_tokens: int = 2048
    block_size: int = 32
    num_blocks: int = 0
    kv_cache_fraction: float = 0.9


class CudaBackend(CapturedBackend):
    """Steps of few rows go through one kernel, where it takes the model; others through the ops."""

    whole_step: WholeStep | None = None

    def forward(self, batch: Batch) -> DecoderOutput:
        if self.whole_step is not None and self.whole_step.takes(batch):
            return self.whole_step.forward(batch)
        return super().forward(batch)


def make_cuda_backend(
    checkpoint: Checkpoint, dtype: torch.dtype, limits: CudaLimits, use_whole_step: bool = True
) -> CudaBackend:
    """Load weights onto the current device, lay out the cache and make the backend.

    Raises:
        EnginewrightError: weights and a cache for one request do not fit the device's memory.
    """
    device = f"cuda:{torch.cuda.current_device()}"
    try:
        decoder = Decoder(checkpoint, dtype, "torch", limits.max_seq_len, device)
        num_blocks = limits.num_blocks or _num_blocks(checkpoint.spec, limits)
        cache = KVCache(checkpoint.spec, num_blocks + 1, limits.block_size, dtype, device)  # one block is padding's
    except torch.OutOfMemoryError as error:
        raise EnginewrightError(f"{_memory()}: weights and KV cache do not fit ({error}); {_REMEDY}") from error
    cache.storage[:, num_blocks:] = 0  # padding reads what padding wrote, and must find numbers there
    held = EngineLimits(
        limits.max_batch_size, limits.max_seq_len, limits.max_num_tokens, num_blocks, limits.block_size
    )  # fmt: skip
    backend = CudaBackend(decoder, cache, held, CudaRecorder(), most_repeats=MOST_REPEATS)
    if use_whole_step and dtype == torch.bfloat16 and max_shared_bytes(torch.cuda.current_device()) >= SHARED_BYTES:
        backend.whole_step = WholeStep(decoder, cache, limits.max_seq_len)
    return backend


_REMEDY = "build it with a smaller target.cuda.max_seq_len or max_batch_size, or free memory on the device"


def _num_blocks(spec: ModelSpec, limits: CudaLimits) -> int:
    """Blocks that the free memory holds, and no more than full batches of the longest texts use."""
    block_bytes = limits.block_size * spec.kv_bytes_per_token(ELEMENT_BYTES)
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    fitting = int(free_bytes * limits.kv_cache_fraction) // block_bytes - 1
    longest = -(-limits.max_seq_len // limits.block_size)
    if fitting < longest:
        raise EnginewrightError(
            f"{_memory()}: the KV cache has room for {max(fitting, 0) * limits.block_size} tokens, less than one "
            f"request of {limits.max_seq_len}; {_REMEDY}"
        )
    return min(fitting, limits.max_batch_size * longest)


def _memory() -> str:
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free"
