"""From files to a running engine."""

from pathlib import Path

import torch

from runtime.backends.base import EngineLimits
from runtime.backends.torch_backend import TorchBackend
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.speculation.drafter import Drafter
from runtime.text.tokenizer import Tokenizer


def load_engine(checkpoint: Checkpoint, engine_dir: Path, tokenizer: Tokenizer) -> Engine:
    """Load the engine that `engine_dir` describes over a checkpoint's weights.

    Raises:
        EnginewrightError: a damaged file, or a plan that this machine cannot run.
    """
    return Engine(make_backend(checkpoint, EnginePlan.read(engine_dir)), tokenizer.eos_token_ids)


def make_backend(
    checkpoint: Checkpoint, plan: EnginePlan, drafter: Drafter | None = None, read_lag: int = 0
) -> TorchBackend:
    """Build the backend of a plan; `read_lag` > 0 imitates a device that the host reads late."""
    dtype = getattr(torch, plan.dtype)
    try:
        decoder = Decoder(checkpoint, dtype, plan.linear, plan.max_seq_len)
    except ValueError as error:
        raise EnginewrightError(
            f"this machine cannot run the engine: {error}; rebuild it with target.cpu.linear=torch"
        ) from error
    cache = KVCache(checkpoint.spec, plan.num_blocks, plan.block_size, dtype)
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    return TorchBackend(decoder, cache, limits, drafter, read_lag)
