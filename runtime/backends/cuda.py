"""The backend of the CUDA engine: captured steps over our kernels, on the current device."""

from plugins.layer_step.cuda import takes_wide
from runtime.backends.base import EngineLimits, StepResult, TokenHandle
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.recording import CudaRecorder
from runtime.backends.device_state import DeviceState
from runtime.backends.gpu_errors import gpu_errors
from runtime.batch import Batch, StepPlan
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput
from runtime.model.layer_steps import LayerSteps, has_small_layers, usual_rows
from runtime.model.whole_step import WholeStep
from runtime.tuning import NO_CHOICES, Choices

MOST_REPEATS = 8  # passes of one plan; a few milliseconds of a small model
OPS = "ops"  # the path of passes that no kernels for few rows take


class _Handle:
    """Tokens on their way: what failed on the GPU since shows when they are waited for."""

    def __init__(self, handle: TokenHandle) -> None:
        self._handle = handle

    def read(self) -> list[StepResult]:
        with gpu_errors("in a step"):
            return self._handle.read()


class CudaBackend(CapturedBackend):
    """Passes over few rows go through kernels of their own, where they take the model and the device: a few launches
    for each layer or, over up to four rows of a model whose layers are not small, one launch. Others go through the
    ops. What was measured on the device says which, where something was."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        limits: EngineLimits,
        use_whole_step: bool = True,
        choices: Choices = NO_CHOICES,
    ) -> None:
        super().__init__(decoder, cache, limits, CudaRecorder(), most_repeats=MOST_REPEATS)
        cache.storage[:, limits.num_blocks :] = 0  # padding reads what padding wrote, and must find numbers there
        self._choices = choices
        self.variant = str(dict(choices.paths)) if choices.paths else ""
        self._usual_rows = usual_rows(decoder.spec, takes_wide(cache.storage.device, cache.storage.dtype))
        self._few_rows: dict[str, WholeStep | LayerSteps] = {}  # by name, what is usually fastest first
        if use_whole_step:
            whole_step, layer_steps = WholeStep(decoder, cache, limits.max_seq_len), LayerSteps(decoder, cache)
            self._few_rows = {"whole_step": whole_step, "layer_steps": layer_steps}
            if has_small_layers(decoder.spec):
                self._few_rows = {"layer_steps": layer_steps, "whole_step": whole_step}

    def paths(self, batch: Batch) -> list[str]:
        """The kinds of kernels that take this batch; the first is what it takes where nothing was measured."""
        taking = [name for name, few_rows in self._few_rows.items() if few_rows.takes(batch)]
        if taking[:1] == ["layer_steps"] and len(batch.token_ids) > self._usual_rows:
            return [OPS, *taking]
        return [*taking, OPS]

    def forward(self, batch: Batch) -> DecoderOutput:
        paths = self.paths(batch)
        chosen = self._choices.path(len(batch.token_ids))
        return self.forward_on(chosen if chosen in paths else paths[0], batch)

    def forward_on(self, path: str, batch: Batch) -> DecoderOutput:
        """As `forward`, through one of `paths`."""
        return super().forward(batch) if path == OPS else self._few_rows[path].forward(batch)

    def step(self, plan: StepPlan, state: DeviceState) -> TokenHandle:
        with gpu_errors("in a step"):
            return _Handle(super().step(plan, state))
