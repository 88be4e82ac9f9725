"""Logs as JSON, one line each; a line per request, with what its record holds."""

import io
import json
import logging
import sys
import traceback
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.record import RequestRecord, request_id
from runtime.server.tracing import Tracer

_log = logging.getLogger("enginewright.request")
_PROBES = ("/health", "/ready", "/metrics")  # asked every few seconds; logged only when they fail


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger and message, then the fields of `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs() -> None:
    """Send every logger's lines, uvicorn's included, to stdout as JSON."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a client sent may be no Unicode text
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every write to a client that has left


class RequestLog:
    """ASGI middleware, the outermost: starts each request's record and span, and logs it when it has ended."""

    def __init__(self, app: ASGIApp, tracer: Tracer | None) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        client = scope["client"][0] if scope.get("client") else ""
        record = RequestRecord(scope["method"], scope["path"], client, request_id(headers.get("x-request-id")))
        scope.setdefault("state", {})["record"] = record

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", record.request_id.encode())]
            await send(message)

        started = self._tracer.start(record, headers) if self._tracer else None
        try:
            await self._app(scope, receive, watched_send)
        except Exception:
            record.status, record.error = record.status or 500, record.error or "internal error"
            raise
        finally:
            if record.path not in _PROBES or record.status >= 400:
                _log.info("request", extra={"fields": record.fields()})
            if started is not None:
                started.end(record)
        return None
