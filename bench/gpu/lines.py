"""Raw lines of the rows, and what rows share: an engine over weights made on the device, and memory given back."""

import gc
from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu.models import RandomCheckpoint
from runtime.backends.cuda import CudaBackend
from runtime.benchmark.ceilings import product_rate, read_bandwidth
from runtime.cuda_engine import load_on_gpu
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan

Line = dict[str, Any]
OURS, NAIVE, COMPILED = "enginewright", "naive graph", "transformers compiled"
EAGER, EAGER_AS_IS = "transformers eager", "transformers eager, cuDNN attention"
REPEATS = 3


def engine_plan(**limits: int) -> EnginePlan:
    """What rows run with where they ask for nothing else."""
    usual = {"max_batch_size": 64, "max_seq_len": 2048, "max_num_tokens": 2048, "num_blocks": 4096}
    return EnginePlan(
        target="cuda", dtype="bfloat16", linear="torch", block_size=32, kv_cache_fraction=0.95, **usual | limits
    )


def make_backend(
    checkpoint: Checkpoint | RandomCheckpoint, plan: EnginePlan | None = None, use_whole_step: bool = True
) -> CudaBackend:
    """Weights made on the device, or read from files."""
    return load_on_gpu(checkpoint, plan or engine_plan(), use_whole_step=use_whole_step)  # type: ignore[arg-type]


def free() -> None:
    """Give back what the row has let go of."""
    gc.collect()
    torch.cuda.empty_cache()


def ceiling_lines(products_in: torch.dtype | None = None) -> Iterator[Line]:
    """What this device reads per second, and multiplies."""
    device = torch.device("cuda")
    yield {"metric": "read_bandwidth", "unit": "bytes/s", "value": read_bandwidth(device)}
    if products_in is not None:
        yield {"metric": "product_rate", "unit": "flop/s", "value": product_rate(device, products_in)}


def decode_line(system: str, batch_size: int, repeat: int, tokens_per_s: float) -> Line:
    return {"metric": "decode", "system": system, "batch_size": batch_size, "repeat": repeat, "unit": "tokens/s",
            "value": tokens_per_s}  # fmt: skip


def prefill_line(system: str, prompt_len: int, repeat: int, seconds: float) -> Line:
    return {"metric": "prefill", "system": system, "prompt_len": prompt_len, "repeat": repeat, "unit": "ms",
            "value": seconds * 1e3}  # fmt: skip


def energy_line(system: str, batch_size: int, joules_per_token: float, seconds: float, watts: float) -> Line:
    return {"metric": "energy", "system": system, "batch_size": batch_size, "repeat": 0, "unit": "J/token",
            "value": joules_per_token, "seconds": seconds, "watts": watts}  # fmt: skip
