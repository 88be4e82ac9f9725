"""The whole-step kernel on a GPU: one cooperative launch a step."""

import torch

from plugins.cuda.launch import launch
from plugins.cuda.library import get_kernel
from plugins.cuda.source import KernelSource
from plugins.decoder_step.plan import StepPlan, defines, plan_step, shared_bytes
from plugins.decoder_step.state import DecoderStepParams, StepState
from plugins.decoder_step.weights import StepSpec, StepWeights

THREADS = 288  # 8 consumer warps and the one that fills the ring


def step_source(spec: StepSpec, plan: StepPlan, block_size: int) -> KernelSource:
    """Return what is compiled for steps of one model, row bucket and cache."""
    macros = tuple(defines(spec, plan, block_size).items())
    return KernelSource("decoder_step", "decoder_step/decoder_step.cu", macros)


class DecoderStep:
    """Steps of up to `rows` rows of one model over one cache, on the current device.

    Owns what its launches hand each other, so steps of one object run one after another: on one stream, or ordered by
    events. A graph may hold any number of them.

    Args:
        weights, cache, max_context: see `StepState`.
        rows: the most rows of a step.

    Raises:
        ValueError: the kernel cannot take this model or so many rows; `plan.supports` says so beforehand.
        KernelError: the engine has no image for it.
    """

    def __init__(self, weights: StepWeights, cache: torch.Tensor, rows: int, max_context: int) -> None:
        plan = plan_step(weights.spec, rows)
        if isinstance(plan, str):
            raise ValueError(plan)
        source = step_source(weights.spec, plan, cache.shape[3])
        self._kernel = get_kernel(source, "decoder_step_kernel", DecoderStepParams)
        self._num_blocks = torch.cuda.get_device_properties(cache.device).multi_processor_count
        self._shared_bytes = shared_bytes(weights.spec, plan)
        self._state = StepState(weights, cache, plan, max_context, self._num_blocks)

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        query_starts: torch.Tensor,
        context_lens: torch.Tensor,
        block_tables: torch.Tensor,
        ancestors: torch.Tensor | None,
        logits: torch.Tensor,
        hidden: torch.Tensor,
    ) -> None:
        """Launch one step on the current stream; see the package for the arguments.

        Raises:
            ValueError: a tensor of another shape, dtype, layout or device.
            KernelError: the driver refused the launch.
        """
        params = self._state.params(
            token_ids, positions, query_starts, context_lens, block_tables, ancestors, logits, hidden
        )
        stream = torch.cuda.current_stream().cuda_stream
        launch(self._kernel, self._num_blocks, THREADS, self._shared_bytes, params, stream, cooperative=True)
