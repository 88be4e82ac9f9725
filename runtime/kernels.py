"""Which CUDA kernels an engine of a model needs: each op states its own, this collects them. Needs no GPU."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from plugins.accept import cuda as accept
from plugins.attention import cuda as attention
from plugins.cuda.errors import KernelError
from plugins.cuda.source import KernelSource
from plugins.draft_pass import cuda as draft_pass
from plugins.emit_tokens import cuda as emit_tokens
from plugins.kv_compact import cuda as kv_compact
from plugins.kv_copy_blocks import cuda as kv_copy_blocks
from plugins.layer_step import wide
from plugins.place_tokens import cuda as place_tokens
from plugins.rms_norm import cuda as rms_norm
from plugins.rope_kv_write import cuda as rope_kv_write
from plugins.sample import cuda as sample
from plugins.silu_mul import cuda as silu_mul
from plugins.tree_pack import cuda as tree_pack
from runtime.errors import EnginewrightError
from runtime.model import layer_steps, whole_step
from runtime.spec import ModelSpec

CUDA_DTYPES = ("bfloat16", "float16")


class NeededKernel(NamedTuple):
    """A kernel to compile; `archs` are those that can run it, none named: all."""

    source: KernelSource
    archs: tuple[str, ...] = ()


def kernels_for(
    spec: ModelSpec, dtype: str, block_size: int, drafting: ModelSpec | None = None
) -> tuple[NeededKernel, ...]:
    """Return the kernels that a CUDA engine of this model launches, and those of a smaller model that drafts for it.

    Raises:
        EnginewrightError: a dtype or a head_dim that no kernel takes.
    """
    if dtype not in CUDA_DTYPES:
        raise EnginewrightError(
            f"target cuda computes in {' or '.join(CUDA_DTYPES)}, and dtype is {dtype}; "
            "write precision=bf16, or target=[cpu]"
        )
    for model in (spec, drafting) if drafting else (spec,):
        if model.head_dim not in attention.HEAD_DIMS:
            known = ", ".join(map(str, attention.HEAD_DIMS))
            whose = "this model's" if model is spec else "the drafting model's"
            raise EnginewrightError(
                f"target cuda takes head_dim {known}; {whose} is {model.head_dim}; write target=[cpu]"
            )
    head_dims = (spec.head_dim, drafting.head_dim) if drafting else (spec.head_dim,)
    try:
        return tuple(_needed(spec, getattr(torch, dtype), block_size, head_dims))
    except KernelError as error:
        raise EnginewrightError(f"target cuda: {error}") from error


def _needed(spec: ModelSpec, dtype: torch.dtype, block_size: int, head_dims: tuple[int, ...]) -> Iterator[NeededKernel]:
    for op in (place_tokens, kv_copy_blocks, sample, tree_pack, accept, kv_compact, emit_tokens):
        yield NeededKernel(op.SOURCE)
    for source in (
        *(rms_norm.source(element) for element in dict.fromkeys((dtype, torch.bfloat16))),  # the last is float32's
        rope_kv_write.source(dtype),
        attention.PLAN_SOURCE,
        *(attention.source(dtype, head_dim) for head_dim in dict.fromkeys(head_dims)),
        silu_mul.source(dtype),
        draft_pass.source(dtype),
    ):
        yield NeededKernel(source)
    for head_dim in dict.fromkeys(head_dims):
        if head_dim in attention.PREFILL_HEAD_DIMS:
            yield NeededKernel(attention.prefill_source(dtype, head_dim), attention.PREFILL_ARCHS)
    for source in whole_step.step_sources(spec, dtype, block_size):
        yield NeededKernel(source, whole_step.ARCHS)
    for source in layer_steps.layer_sources(spec, dtype):
        yield NeededKernel(source, layer_steps.ARCHS)
    for source in layer_steps.wide_sources(spec, dtype):
        yield NeededKernel(source, wide.ARCHS)
