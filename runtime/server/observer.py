"""Watches the deltas of one request on their way to the client: what the metrics and the log are told."""

from dataclasses import dataclass

from runtime.async_llm import OpenRequest
from runtime.server.metrics import Metrics
from runtime.server.record import RequestRecord
from runtime.text_engine import Completion, StreamDelta


@dataclass
class _Times:
    """Of one sample, by `time.perf_counter`."""

    first_at: float
    last_at: float


class Observer:
    """Call `see` with every delta and `close` once, however the request ends."""

    def __init__(self, metrics: Metrics, record: RequestRecord, request: OpenRequest) -> None:
        self._metrics = metrics
        self._record = record
        self._num_samples = len(request.completions)
        self._times: dict[Completion, _Times] = {}
        record.prompt_tokens = sum(len(output.prompt_ids) for output in request.outputs)
        metrics.prompt_tokens.inc(record.prompt_tokens)
        for output in request.outputs:
            metrics.observe("request_prompt_tokens", len(output.prompt_ids))

    def see(self, delta: StreamDelta) -> None:
        self._record.completion_tokens += 1
        self._metrics.generation_tokens.inc()
        times = self._times.get(delta.completion)
        if times is None:
            times = self._begin(delta)
        elif delta.read_at > times.last_at:  # tokens of one step come together
            for name in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
                self._metrics.observe(name, delta.read_at - times.last_at)
        times.last_at = delta.read_at
        if delta.finish_reason is not None:
            self._end(delta.completion, times, delta.finish_reason)

    def close(self) -> None:
        """Count the samples that never came to an end."""
        for _ in range(self._num_samples - len(self._record.finish_reasons)):
            self._metrics.count_end("abort")
            self._record.finish_reasons.append("abort")

    def _begin(self, delta: StreamDelta) -> _Times:
        started_at, admitted_at = self._record.started_at, delta.completion.admitted_at or delta.read_at
        self._metrics.observe("time_to_first_token_seconds", delta.read_at - started_at)
        self._metrics.observe("request_queue_time_seconds", admitted_at - started_at)
        self._metrics.observe("request_prefill_time_seconds", delta.read_at - admitted_at)
        if not self._times:
            self._record.queue_s = admitted_at - started_at
            self._record.time_to_first_token_s = delta.read_at - started_at
        return self._times.setdefault(delta.completion, _Times(delta.read_at, delta.read_at))

    def _end(self, completion: Completion, times: _Times, reason: str) -> None:
        num_tokens, decode_s = len(completion.token_ids), times.last_at - times.first_at
        admitted_at = completion.admitted_at or times.first_at
        self._metrics.count_end(reason)
        self._record.finish_reasons.append(reason)
        self._metrics.observe("e2e_request_latency_seconds", times.last_at - self._record.started_at)
        self._metrics.observe("request_inference_time_seconds", times.last_at - admitted_at)
        self._metrics.observe("request_decode_time_seconds", decode_s)
        self._metrics.observe("request_generation_tokens", num_tokens)
        if num_tokens > 1:
            self._metrics.observe("request_time_per_output_token_seconds", decode_s / (num_tokens - 1))
