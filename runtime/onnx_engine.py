"""The onnx engine's backend: ONNX Runtime over the bundle's graph and its one file of weights."""

from pathlib import Path

import torch

from runtime.backends.base import EngineLimits
from runtime.backends.slots.backend import OnnxBackend
from runtime.backends.slots.onnx_session import OnnxSession
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.step_graph import GRAPH_FILE


def make_onnx_backend(checkpoint: Checkpoint, plan: EnginePlan, engine_dir: Path) -> OnnxBackend:
    """Load an onnx engine on the CPU.

    Raises:
        EnginewrightError: no ONNX Runtime, a graph that it does not take, or one that is not the plan's.
    """
    session = OnnxSession(engine_dir / GRAPH_FILE, checkpoint.path, checkpoint.spec)
    if session.dtype != getattr(torch, plan.dtype):
        raise EnginewrightError(
            f"{engine_dir}: the plan says {plan.dtype}, the graph's caches are {session.dtype}; build the bundle again"
        )
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    return OnnxBackend(session, limits)
