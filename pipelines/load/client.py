"""One streamed answer of an OpenAI-compatible endpoint, timed piece by piece."""

import json
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from pipelines.load.options import LoadOptions
from pipelines.load.sample import Sample

MAX_LINE_BYTES = 2**20
MAX_ERROR_CHARS = 200


class Client:
    """Asks one model of one endpoint. The session carries the API key."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, options: LoadOptions) -> None:
        self._session = session
        self._is_chat = options.api == "chat"
        self._url = url + ("/chat/completions" if self._is_chat else "/completions")
        self._timeout = aiohttp.ClientTimeout(total=options.timeout_s)
        self._body: dict[str, Any] = {
            "model": model,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if options.ignore_eos:
            self._body["ignore_eos"] = True

    def ask(self, prompt: str, extra: Mapping[str, Any]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a prompt; `extra` are further fields of the body, or others in their place."""
        asked = {"messages": [{"role": "user", "content": prompt}]} if self._is_chat else {"prompt": prompt}
        return self._session.post(self._url, json={**self._body, **asked, **extra}, timeout=self._timeout)

    async def answer(self, prompt: str, due: float, sample: Sample, extra: Mapping[str, Any] | None = None) -> str:
        """Fill in what becomes of a prompt that was due at `time.perf_counter() == due`; return the text."""
        sample.sent_s = _since(due)
        text = ""
        try:
            async with self.ask(prompt, extra or {}) as response:
                if response.status == 200:
                    text = await _read(response, due, sample)
                else:
                    sample.error = error_of(response.status, await response.text())
        except TimeoutError:
            sample.error = "timeout"
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: what is not JSON
            sample.error = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
        sample.total_s = _since(due)
        return text


def _since(due: float) -> float:
    return round(time.perf_counter() - due, 6)


async def _read(response: aiohttp.ClientResponse, due: float, sample: Sample) -> str:
    """Read server-sent events to their end."""
    pieces: list[str] = []
    is_done = False
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            is_done = True
            continue
        now = _since(due)
        if piece := _take(json.loads(data), sample):
            sample.text_s.append(now)
            pieces.append(piece)
    if not sample.has_usage:
        sample.output_tokens = len(pieces)
    if sample.error is None and not is_done:
        sample.error = "the stream broke off"
    elif sample.error is None and not pieces:
        sample.error = "no text came"
    return "".join(pieces)


def _take(event: dict[str, Any], sample: Sample) -> str:
    """Note what an event says; return its text."""
    if usage := event.get("usage"):
        sample.prompt_tokens, sample.output_tokens = usage.get("prompt_tokens"), usage["completion_tokens"]
        sample.has_usage = True
    if "error" in event:
        sample.error = error_of(None, json.dumps(event))
    text = ""
    for choice in event.get("choices") or []:
        sample.finish_reason = choice.get("finish_reason") or sample.finish_reason
        delta = choice.get("delta") or choice
        text += delta.get("content") or delta.get("reasoning_content") or delta.get("text") or ""
    return text


def error_of(status: int | None, body: str) -> str:
    """One line from an error's body, which should be {"error": {"message": ...}} but need not be."""
    try:
        error = json.loads(body)["error"]
        body = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    line = " ".join(body.split())[:MAX_ERROR_CHARS]
    return f"{status}: {line}" if status else line
