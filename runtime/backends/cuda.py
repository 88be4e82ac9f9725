"""The backend of the CUDA engine: captured steps over our kernels, on the current device."""

from runtime.backends.base import EngineLimits
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.recording import CudaRecorder
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput
from runtime.model.whole_step import WholeStep

MOST_REPEATS = 8  # passes of one plan; a few milliseconds of a small model


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
