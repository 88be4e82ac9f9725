"""The CPU backend: the decoder over a paged cache, each step finished when it returns."""

import torch

from runtime.backends.base import BatchLayout, EngineLimits, KvLayout, StepResult, TokenLogprobs
from runtime.backends.device_state import DeviceState
from runtime.batch import Batch, PlanRow
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput


class _Finished:
    """A handle whose step has ended."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def read(self) -> StepResult:
        return self._result


class CpuBackend:
    """See `runtime.backends.base.Backend`. `read_lag` is 0 because a step has ended when it returns."""

    kv: KvLayout = "paged"
    batch: BatchLayout = "packed"

    def __init__(self, decoder: Decoder, cache: KVCache, limits: EngineLimits, read_lag: int = 0) -> None:
        self.limits = limits
        self.read_lag = read_lag
        self._decoder = decoder
        self._cache = cache

    def forward(self, batch: Batch) -> DecoderOutput:
        return self._decoder.forward(batch, self._cache)

    def new_state(self) -> DeviceState:
        return DeviceState(self.limits.max_batch_size)

    @torch.inference_mode()
    def step(self, rows: list[PlanRow], state: DeviceState) -> _Finished:
        logits = self.forward(state.batch(rows)).logits
        emitting = [row for row in rows if row.emits]
        if not emitting:
            return _Finished(StepResult([], []))
        tokens = state.draw(logits, rows)
        return _Finished(StepResult(tokens.tolist(), _logprobs(logits, tokens, emitting)))


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor, emitting: list[PlanRow]) -> list[TokenLogprobs | None]:
    result: list[TokenLogprobs | None] = [None] * len(emitting)
    for index, row in enumerate(emitting):
        if row.logprobs is not None:
            logprobs = torch.log_softmax(logits[index].double(), dim=0)
            values, token_ids = logprobs.topk(row.logprobs)
            top = list(zip(token_ids.tolist(), values.tolist(), strict=True))
            result[index] = TokenLogprobs(float(logprobs[tokens[index]]), top)
    return result
