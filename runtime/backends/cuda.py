"""The backend of the CUDA engine: captured steps over our kernels, on the current device."""

from runtime.backends.base import EngineLimits, StepResult, TokenHandle
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.recording import CudaRecorder
from runtime.backends.device_state import DeviceState
from runtime.backends.gpu_errors import gpu_errors
from runtime.batch import Batch, StepPlan
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput
from runtime.model.whole_step import WholeStep

MOST_REPEATS = 8  # passes of one plan; a few milliseconds of a small model


class _Handle:
    """Tokens on their way: what failed on the GPU since shows when they are waited for."""

    def __init__(self, handle: TokenHandle) -> None:
        self._handle = handle

    def read(self) -> list[StepResult]:
        with gpu_errors("in a step"):
            return self._handle.read()


class CudaBackend(CapturedBackend):
    """Passes over few rows go through one kernel, where it takes the model and the device; others through the ops."""

    def __init__(self, decoder: Decoder, cache: KVCache, limits: EngineLimits, use_whole_step: bool = True) -> None:
        super().__init__(decoder, cache, limits, CudaRecorder(), most_repeats=MOST_REPEATS)
        cache.storage[:, limits.num_blocks :] = 0  # padding reads what padding wrote, and must find numbers there
        self._whole_step = WholeStep(decoder, cache, limits.max_seq_len) if use_whole_step else None

    def forward(self, batch: Batch) -> DecoderOutput:
        if self._whole_step is not None and self._whole_step.takes(batch):
            return self._whole_step.forward(batch)
        return super().forward(batch)

    def step(self, plan: StepPlan, state: DeviceState) -> TokenHandle:
        with gpu_errors("in a step"):
            return _Handle(super().step(plan, state))
