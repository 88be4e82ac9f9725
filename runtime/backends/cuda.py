"""The backend of the CUDA engine: captured steps over our kernels, on the current device."""

from runtime.backends.base import EngineLimits
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.recording import CudaRecorder
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput
from runtime.model.layer_steps import LayerSteps
from runtime.model.whole_step import WholeStep

MOST_REPEATS = 8  # passes of one plan; a few milliseconds of a small model


class CudaBackend(CapturedBackend):
    """Passes over few rows go through kernels of their own, where they take the model and the device: one launch for a
    row or two, a few for each layer for some more. Others go through the ops."""

    def __init__(self, decoder: Decoder, cache: KVCache, limits: EngineLimits, use_whole_step: bool = True) -> None:
        super().__init__(decoder, cache, limits, CudaRecorder(), most_repeats=MOST_REPEATS)
        cache.storage[:, limits.num_blocks :] = 0  # padding reads what padding wrote, and must find numbers there
        self._few_rows: list[WholeStep | LayerSteps] = []
        if use_whole_step:
            self._few_rows = [WholeStep(decoder, cache, limits.max_seq_len), LayerSteps(decoder, cache)]

    def forward(self, batch: Batch) -> DecoderOutput:
        for few_rows in self._few_rows:
            if few_rows.takes(batch):
                return few_rows.forward(batch)
        return super().forward(batch)
