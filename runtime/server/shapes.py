"""The bodies of answers: whole, and in chunks. One shape per endpoint."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from runtime.backends.base import TokenLogprobs
from runtime.server.settings import ServedModel
from runtime.server.tokens import TokenTexts
from runtime.text_engine import Completion, StreamDelta


class Shape(Protocol):
    """How an endpoint writes the choices of an answer."""

    object_name: str
    chunk_name: str
    id_prefix: str

    def opening(self) -> dict[str, Any] | None:
        """A choice, but for its index, that comes before its first token; None where nothing does."""
        ...

    def delta(self, delta: StreamDelta, logprobs: Any) -> dict[str, Any]:
        """What a token adds to a choice."""
        ...

    def whole(self, completion: Completion, logprobs: Any) -> dict[str, Any]:
        """A whole choice."""
        ...

    def logprobs(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
        """Log-probabilities of tokens that begin at character `offset` of the answer."""
        ...


class ChatShape:
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts

    def opening(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, delta: StreamDelta, logprobs: Any) -> dict[str, Any]:
        added = {"content": delta.text} if delta.text else {}
        return {"delta": added, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def whole(self, completion: Completion, logprobs: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        return {"message": message, "logprobs": logprobs, "finish_reason": completion.finish_reason}

    def logprobs(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
        content = [
            self._token(token_id, entry.chosen)
            | {"top_logprobs": [self._token(top_id, logprob) for top_id, logprob in entry.top]}
            for token_id, entry in zip(token_ids, entries, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._texts.bytes_of(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}


class CompletionShape:
    object_name = chunk_name = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts

    def opening(self) -> None:
        return None

    def delta(self, delta: StreamDelta, logprobs: Any) -> dict[str, Any]:
        return {"text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def whole(self, completion: Completion, logprobs: Any) -> dict[str, Any]:
        return {"text": completion.text, "logprobs": logprobs, "finish_reason": completion.finish_reason}

    def logprobs(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
        return {
            "tokens": [self._texts.name_of(token_id) for token_id in token_ids],
            "token_logprobs": [entry.chosen for entry in entries],
            "top_logprobs": [{self._texts.name_of(i): logprob for i, logprob in entry.top} for entry in entries],
            "text_offset": self._texts.offsets(token_ids, offset),
        }


class Envelope:
    """What surrounds the choices of one answer."""

    def __init__(self, shape: Shape, model: ServedModel, request_id: str) -> None:
        self._shape = shape
        self._fixed = {
            "id": f"{shape.id_prefix}-{request_id.removeprefix('req-')}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.bundle_id[:12],
        }

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._fixed, "object": self._shape.object_name, "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None, with_usage: bool) -> dict[str, Any]:
        """`with_usage`: whether the client asked for counts, which all but the last chunk leave empty."""
        body = {**self._fixed, "object": self._shape.chunk_name, "choices": choices}
        return {**body, "usage": usage} if with_usage else body


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
