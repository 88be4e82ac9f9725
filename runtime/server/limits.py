"""Bounds on what a client may send, and on how many may wait."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.errors import ApiError

_RETRY_S = 5  # of a server that goes away: another one may be there by then


class BodyLimit:
    """ASGI middleware: reads the body of a request, up to a size and within a time, before anything else sees it."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self._app(scope, receive, send)
        try:
            body = await self._read(dict(scope["headers"]), receive)
        except ApiError as error:
            scope["state"]["record"].error = error.message
            error.headers["Connection"] = "close"  # the rest of the body is not read
            return await error.response()(scope, receive, send)
        if body is None:
            return None
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return await self._app(scope, replay, send)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body; None where the client left before it was complete."""
        too_long = ApiError(413, f"the body is longer than {self._max_bytes} bytes, this server's limit", "too_large")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_bytes:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        raise too_long
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            message_text = f"the body did not arrive within {self._timeout_s:g} s, this server's limit"
            raise ApiError(408, message_text, "timeout") from None


class Admission:
    """How many samples may be in the engine at once: its slots, and `max_queue` that wait for one."""

    def __init__(self, num_slots: int, max_queue: int) -> None:
        self.num_open = 0
        self.is_draining = False
        self._num_slots = num_slots
        self._max_queue = max_queue
        self._mean_s = 1.0  # that a recent request held its places

    @contextmanager
    def hold(self, num_samples: int) -> Iterator[None]:
        """Take places for a request's samples.

        Raises:
            ApiError: 400 where they never fit, 429 where they do not fit now, 503 where the server is going away.
        """
        most = self._num_slots + self._max_queue
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", "draining", headers={"Retry-After": str(_RETRY_S)})
        if num_samples > most:
            raise ApiError(400, f"{num_samples} samples in one request; this server takes at most {most}", param="n")
        if self.num_open + num_samples > most:
            message = f"the server is full: {self.num_open} samples are open, and it takes {most}; try again later"
            raise ApiError(429, message, "queue_full", headers={"Retry-After": str(self._retry_s())})
        self.num_open += num_samples
        started_at = time.monotonic()
        try:
            yield
        finally:
            self.num_open -= num_samples
            self._mean_s += 0.1 * (time.monotonic() - started_at - self._mean_s)

    def _retry_s(self) -> int:
        """When half of those that wait will have begun, at the pace of late; whole seconds, as HTTP has them."""
        return max(1, min(60, math.ceil(self._mean_s * self._max_queue / self._num_slots / 2)))
