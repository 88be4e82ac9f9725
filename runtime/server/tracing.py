"""OpenTelemetry spans, one per /v1 request, where the server is asked for them. Nothing is imported otherwise."""

from collections.abc import Mapping
from typing import Any

from runtime.errors import EnginewrightError
from runtime.server.record import RequestRecord

EXPORTERS = ("otlp", "console")


class Tracer:
    """Makes a span of each request under /v1, in the trace that its `traceparent` header names."""

    def __init__(self, exporter: Any, service: str = "enginewright") -> None:
        """exporter: a SpanExporter of the OpenTelemetry SDK."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("enginewright.server")

    def start(self, record: RequestRecord, headers: Mapping[str, str]) -> "_OpenSpan | None":
        if not record.path.startswith("/v1/"):
            return None
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract(headers)
        return _OpenSpan(self._tracer.start_span(f"{record.method} {record.path}", context, SpanKind.SERVER))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


class _OpenSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, record: RequestRecord) -> None:
        """Close the span with the names that OpenTelemetry gives to generative AI."""
        from opentelemetry.trace import StatusCode

        attributes = {
            "http.request.method": record.method,
            "url.path": record.path,
            "http.response.status_code": record.status,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.response.finish_reasons": tuple(record.finish_reasons),
            "gen_ai.latency.time_in_queue": record.queue_s,
            "gen_ai.latency.time_to_first_token": record.time_to_first_token_s,
        }
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if record.error is not None:
            self._span.set_status(StatusCode.ERROR, record.error)
        self._span.end()


def make_tracer(exporter: str) -> Tracer:
    """A tracer that exports to the collector of OTEL_EXPORTER_OTLP_ENDPOINT, or to stdout.

    Raises:
        EnginewrightError: the exporter is unknown, or its packages are not installed.
    """
    if exporter not in EXPORTERS:
        raise EnginewrightError(f"traces is {exporter!r}; it must be one of {', '.join(EXPORTERS)}")
    try:
        if exporter == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            return Tracer(ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n"))
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Tracer(OTLPSpanExporter())
    except ImportError as error:
        packages = "opentelemetry-sdk" + (" opentelemetry-exporter-otlp-proto-http" if exporter == "otlp" else "")
        raise EnginewrightError(
            f"traces={exporter} needs packages that are not here: pip install {packages}"
        ) from error
