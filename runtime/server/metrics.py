"""Prometheus metrics under the names that vLLM gave them, so that its dashboards and autoscalers work unchanged."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.engine import Engine

# vLLM's buckets, in seconds and tokens: histograms of several servers add up only where these are the same.
_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", _TTFT),
    "inter_token_latency_seconds": ("Between steps that gave a request tokens.", _TOKEN),
    "time_per_output_token_seconds": ("The older name of inter_token_latency_seconds.", _TOKEN),
    "request_time_per_output_token_seconds": ("Mean time per token after a request's first.", _TOKEN),
    "e2e_request_latency_seconds": ("From a request's arrival to its last token.", _REQUEST),
    "request_queue_time_seconds": ("From a request's arrival to its first step.", _REQUEST),
    "request_prefill_time_seconds": ("From a request's first step to its first token.", _REQUEST),
    "request_decode_time_seconds": ("From a request's first token to its last.", _REQUEST),
    "request_inference_time_seconds": ("From a request's first step to its last token.", _REQUEST),
    "request_prompt_tokens": ("Tokens of a request's prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens of a request's answer.", _TOKENS),
}
_LABELS = ("model_name", "engine")


class Metrics:
    """One server's metrics. Counts of requests and times are told to it; the engine's own are read when asked for."""

    def __init__(self, model_name: str, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._labels = (model_name, "0")
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self.registry).labels(
                *self._labels
            )
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._success = Counter(
            "vllm:request_success", "Requests that ended.", (*_LABELS, "finished_reason"), registry=self.registry
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(*self._labels, reason)  # so that a rate has its zero to start from
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self.registry.register(_EngineCollector(engine, self._labels))

    def observe(self, name: str, value: float) -> None:
        """Add to one of the histograms, named without `vllm:`."""
        self._histograms[name].observe(value)

    def count_end(self, reason: str) -> None:
        self._success.labels(*self._labels, reason).inc()

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, _LABELS, registry=self.registry).labels(*self._labels)


class _EngineCollector(Collector):
    """Reads the engine's counters beside its thread: plain integers, each of them exact."""

    def __init__(self, engine: Engine, labels: tuple[str, str]) -> None:
        self._engine = engine
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        scheduler = self._engine.scheduler
        pool, prefixes, drafts = scheduler.pool, self._engine.prefix_stats, self._engine.speculation.snapshot()
        yield self._gauge("num_requests_running", "Samples that have a slot.", len(scheduler.running))
        yield self._gauge("num_requests_waiting", "Samples that wait for a slot.", len(scheduler.waiting))
        used = 1 - pool.num_free / pool.num_blocks
        yield self._gauge("kv_cache_usage_perc", "Blocks in use by running samples, 1 is all of them.", used)
        yield self._total("num_preemptions", "Samples that had to give their blocks back.", scheduler.num_preemptions)
        yield self._total("prefix_cache_queries", "Tokens of admitted prompts.", prefixes.queries)
        yield self._total("prefix_cache_hits", "Those of them that were not computed again.", prefixes.hits)
        yield self._total("spec_decode_num_drafts", "Draft trees verified.", drafts.num_drafts)
        yield self._total("spec_decode_num_draft_tokens", "Tokens in them.", drafts.num_draft_tokens)
        yield self._total("spec_decode_num_accepted_tokens", "Those accepted.", drafts.num_accepted_tokens)
        yield self._per_position(drafts.num_accepted_tokens_per_pos)
        yield self._cache_config()

    def _cache_config(self) -> Metric:
        limits = self._engine.backend.limits
        sizes = {"block_size": str(limits.block_size), "num_gpu_blocks": str(limits.num_blocks)}
        family = GaugeMetricFamily("vllm:cache_config_info", "Sizes of the KV cache.", labels=(*_LABELS, *sizes))
        family.add_metric((*self._labels, *sizes.values()), 1)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _total(self, name: str, text: str, value: int) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _per_position(self, counts: Iterable[int]) -> Metric:
        text = "Accepted tokens by depth in the draft, from 0."
        family = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos", text, labels=(*_LABELS, "position")
        )
        for position, count in enumerate(counts):
            family.add_metric((*self._labels, str(position)), count)
        return family
