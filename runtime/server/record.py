"""What is known of one HTTP request by the time it ends: the line in the log, and the attributes of its span."""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass
class RequestRecord:
    """Filled in along the way. Times are those of `time.perf_counter`."""

    method: str
    path: str
    client: str
    request_id: str
    started_at: float = field(default_factory=time.perf_counter)
    status: int = 0
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float | None = None
    time_to_first_token_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    error: str | None = None
    prompt: Any = None  # these two where the log may have them
    output: list[str] | None = None

    def fields(self) -> dict[str, Any]:
        """What the log says, milliseconds rounded; what does not apply is left out."""
        duration_ms = (time.perf_counter() - self.started_at) * 1e3
        told: Mapping[str, Any] = {
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "duration_ms": round(duration_ms, 1),
            "stream": self.stream or None,
            "prompt_tokens": self.prompt_tokens or None,
            "completion_tokens": self.completion_tokens or None,
            "queue_ms": _milliseconds(self.queue_s),
            "ttft_ms": _milliseconds(self.time_to_first_token_s),
            "finish_reasons": self.finish_reasons or None,
            "error": self.error,
            "prompt": self.prompt,
            "output": self.output,
        }
        return {name: value for name, value in told.items() if value is not None}


def request_id(given: str | None) -> str:
    """The client's own id where it is harmless in a log, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
