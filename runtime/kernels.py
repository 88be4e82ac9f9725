"""Which CUDA kernels an engine of a model needs: each op states its own, this collects them. Needs no GPU."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from plugins.attention import cuda as attention
from plugins.cuda.errors import KernelError
from plugins.cuda.source import KernelSource
from plugins.decoder_step.cuda import step_source
from plugins.decoder_step.plan import plan_step
from plugins.emit_tokens import cuda as emit_tokens
from plugins.kv_compact import cuda as kv_compact
from plugins.kv_copy_blocks import cuda as kv_copy_blocks
from plugins.place_tokens import cuda as place_tokens
from plugins.rms_norm import cuda as rms_norm
from plugins.rope_kv_write import cuda as rope_kv_write
from plugins.sample import cuda as sample
from plugins.silu_mul import cuda as silu_mul
from runtime.errors import EnginewrightError
from runtime.model.whole_step import rows_of, step_spec
from runtime.spec import ModelSpec

CUDA_DTYPES = ("bfloat16", "float16")
LARGE_SHARED_ARCHS = ("sm_90a", "sm_100")  # whose blocks may have the 227 KiB of shared memory that whole steps take


class NeededKernel(NamedTuple):
    """A kernel to compile; `archs` are those that can run it, none named: all."""

    source: KernelSource
    archs: tuple[str, ...] = ()


def kernels_for(spec: ModelSpec, dtype: str, block_size: int) -> tuple[NeededKernel, ...]:
    """Return the kernels that a CUDA engine of this model launches.

    Raises:
        EnginewrightError: a dtype or a head_dim that no kernel takes.
    """
    if dtype not in CUDA_DTYPES:
        raise EnginewrightError(
            f"target cuda computes in {' or '.join(CUDA_DTYPES)}, and dtype is {dtype}; "
            "write precision=bf16, or target=[cpu]"
        )
    if spec.head_dim not in attention.HEAD_DIMS:
        known = ", ".join(map(str, attention.HEAD_DIMS))
        raise EnginewrightError(
            f"target cuda takes head_dim {known}; this model's is {spec.head_dim}; write target=[cpu]"
        )
    try:
        return tuple(_needed(spec, getattr(torch, dtype), block_size))
    except KernelError as error:
        raise EnginewrightError(f"target cuda: {error}") from error


def step_sources(spec: ModelSpec, dtype: torch.dtype, block_size: int) -> list[KernelSource]:
    """Return the whole-step kernels, one for each bucket of rows; none where the model goes through the ops alone."""
    sizes = step_spec(spec)
    plans = [plan_step(sizes, rows) for rows in rows_of(spec, dtype)]
    return [step_source(sizes, plan, block_size) for plan in plans if not isinstance(plan, str)]


def _needed(spec: ModelSpec, dtype: torch.dtype, block_size: int) -> Iterator[NeededKernel]:
    for op in (emit_tokens, kv_compact, kv_copy_blocks, place_tokens, sample):
        yield NeededKernel(op.SOURCE)
    for element_op in (rms_norm, rope_kv_write, silu_mul):
        yield NeededKernel(element_op.source(dtype))
    yield NeededKernel(attention.PLAN_SOURCE)
    yield NeededKernel(attention.source(dtype, spec.head_dim))
    yield from (NeededKernel(source, LARGE_SHARED_ARCHS) for source in step_sources(spec, dtype, block_size))
