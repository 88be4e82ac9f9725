"""Which CUDA kernels an engine of a model needs: each op states its own, this collects them. Needs no GPU."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from plugins.attention import cuda as attention
from plugins.cuda.errors import KernelError
from plugins.cuda.source import KernelSource
from plugins.emit_tokens import cuda as emit_tokens
from plugins.kv_compact import cuda as kv_compact
from plugins.kv_copy_blocks import cuda as kv_copy_blocks
from plugins.place_tokens import cuda as place_tokens
from plugins.rms_norm import cuda as rms_norm
from plugins.rope_kv_write import cuda as rope_kv_write
from plugins.sample import cuda as sample
from plugins.silu_mul import cuda as silu_mul
from runtime.errors import EnginewrightError
from runtime.model import whole_step
from runtime.spec import ModelSpec

CUDA_DTYPES = ("bfloat16", "float16")


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


def _needed(spec: ModelSpec, dtype: torch.dtype, block_size: int) -> Iterator[NeededKernel]:
    for source in (
        place_tokens.SOURCE,
        *dict.fromkeys(rms_norm.source(element) for element in (dtype, torch.bfloat16)),  # the last is float32's
        rope_kv_write.source(dtype),
        kv_copy_blocks.SOURCE,
        attention.PLAN_SOURCE,
        attention.source(dtype, spec.head_dim),
        silu_mul.source(dtype),
        sample.SOURCE,
        kv_compact.SOURCE,
        emit_tokens.SOURCE,
    ):
        yield NeededKernel(source)
    for source in whole_step.step_sources(spec, dtype, block_size):
        yield NeededKernel(source, whole_step.ARCHS)
