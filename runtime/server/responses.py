"""Sends an answer, whole or as server-sent events, and stops the work when the client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from runtime.async_llm import OpenRequest
from runtime.server.errors import ApiError
from runtime.server.generation import Asked, Generator
from runtime.server.protocol import GenerationRequest
from runtime.server.record import RequestRecord
from runtime.server.shapes import Envelope, Shape, usage
from runtime.text_engine import Completion

_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
]
_DONE = b"data: [DONE]\n\n"
_LAST_WORDS_S = 5.0  # for an error event to a client that may not be reading
CLIENT_LEFT = 499  # nginx' status for the log; nobody receives it


class GenerationResponse(Response):
    """The answer to one request. The engine starts when the response is sent."""

    def __init__(
        self, generator: Generator, asked: Asked, request: GenerationRequest, shape: Shape, envelope: Envelope
    ) -> None:
        super().__init__()
        self._generator = generator
        self._asked = asked
        self._request = request
        self._shape = shape
        self._envelope = envelope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: RequestRecord = scope["state"]["record"]
        record.stream = bool(self._request.stream)
        answer = self._send_events(record, send) if record.stream else self._send_whole(scope, receive, record, send)
        if not await _unless_disconnected(answer, receive):
            record.status = CLIENT_LEFT
            record.error = "the client left"

    async def _send_whole(self, scope: Scope, receive: Receive, record: RequestRecord, send: Send) -> None:
        async with self._generator.open(self._asked, record) as request:
            async for _ in request.deltas:
                pass
        choices = [{"index": index, **self._whole(completion)} for index, completion in enumerate(request.completions)]
        counts = usage(record.prompt_tokens, record.completion_tokens)
        await JSONResponse(self._envelope.whole(choices, counts))(scope, receive, send)

    async def _send_events(self, record: RequestRecord, send: Send) -> None:
        started = False
        try:
            async with self._generator.open(self._asked, record) as request:
                await send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
                started = True
                async for chunk in self._chunks(request, record):
                    await send(_body(_event(chunk), more=True))
            await send(_body(_DONE, more=False))
        except ApiError as error:
            if not started:
                raise
            record.error = error.message
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await send(_body(error.event().encode() + _DONE, more=False))

    async def _chunks(self, request: OpenRequest, record: RequestRecord) -> AsyncIterator[dict[str, Any]]:
        options = self._request.stream_options
        with_usage = options is not None and bool(options.include_usage or options.continuous_usage_stats)
        running = options is not None and bool(options.continuous_usage_stats)

        def chunk(*choices: dict[str, Any]) -> dict[str, Any]:
            counts = usage(record.prompt_tokens, record.completion_tokens) if running or not choices else None
            return self._envelope.chunk(list(choices), counts, with_usage)

        index_of = {completion: index for index, completion in enumerate(request.completions)}
        opening = self._shape.opening()
        if opening is not None:
            for index in index_of.values():
                yield chunk({"index": index, **opening})
        offsets = [0] * len(index_of)
        async for delta in request.deltas:
            index = index_of[delta.completion]
            logprobs = None
            if delta.logprobs is not None:
                logprobs = self._shape.logprobs([delta.token_id], [delta.logprobs], offsets[index])
            offsets[index] += len(delta.text)
            if delta.text or logprobs is not None or delta.finish_reason is not None:
                choice = {"index": index, **self._shape.delta(delta, logprobs)}
                if self._request.enginewright is not None and self._request.enginewright.drafted:
                    choice["enginewright"] = {"drafted": delta.was_drafted}
                yield chunk(choice)
        if options is not None and options.include_usage:
            yield chunk()

    def _whole(self, completion: Completion) -> dict[str, Any]:
        asked = self._asked.params.logprobs is not None
        logprobs = self._shape.logprobs(completion.token_ids, completion.logprobs, 0) if asked else None
        return self._shape.whole(completion, logprobs)


async def _unless_disconnected(answer: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Send an answer unless the client leaves first; says whether it was sent."""
    sending = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            return False
        await sending
        return True
    finally:
        leaving.cancel()
        sending.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _body(content: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
