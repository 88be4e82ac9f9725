"""Takes secrets out of whatever leaves the process: tracked settings and tags, logs, errors, tracebacks.

By the name of a setting, by the form of a value, and by being the value of a telling environment variable.
"""

import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, TextIO

HIDDEN = "***"
MIN_SECRET_CHARS = 6  # a shorter value, such as `dev`, would be hidden in every other word
# Names of settings and environment variables. `eos_token` and `num_new_tokens` are no secrets.
_NAME = (
    r"(?:\w*(?:password|passwd|secret|api[_-]?key|access[_-]?key|credential)\w*"
    r"|(?:\w*_)?(?<!eos_)(?<!bos_)(?<!pad_)token)"
)
SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_FORMS = [
    (re.compile(r"(?<=://)[^/\s'\"<>]+@"), f"{HIDDEN}@"),  # user:password@ of a URI, up to its last @
    (re.compile(r"\bhf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}"), HIDDEN),  # Hugging Face; not a module's name
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), HIDDEN),  # AWS
    (re.compile(r"\b(?:gh[opsur]_|github_pat_|glpat-|sk-|xox[abprs]-)[\w-]{16,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), HIDDEN),  # a JSON web token
    (re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer|token)\s+)?[^\s'\",}]+", re.IGNORECASE),
     rf"\1{HIDDEN}"),
    (re.compile(r"\b([Bb]earer|Basic)\s+[\w.+/=~-]{16,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"([?&](?:[\w-]*(?:token|signature|credential|secret|password|key)|sig)=)[^&\s#'\"]+", re.IGNORECASE),
     rf"\1{HIDDEN}"),
    (re.compile(rf"\b({_NAME}['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&}}]+", re.IGNORECASE), rf"\1{HIDDEN}"),
]  # fmt: skip


def redacted(value: Any, key: str = "") -> Any:
    """The same plain data, or text, without secrets; `key` is the name that the value goes by."""
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, key) for item in value]
    if isinstance(value, str):
        return HIDDEN if value and SECRET_NAME.fullmatch(key) else redacted_text(value)
    return value


def redacted_text(text: str) -> str:
    """A text without what looks like a secret, and without the values of secret environment variables."""
    for secret in _environment_secrets(tuple(item for item in os.environ.items() if SECRET_NAME.fullmatch(item[0]))):
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    return text


@cache
def _environment_secrets(variables: tuple[tuple[str, str], ...]) -> list[str]:
    """Values to look for, longest first, so that one which holds another goes whole."""
    return sorted({value for _, value in variables if len(value) >= MIN_SECRET_CHARS}, key=len, reverse=True)


class RedactingFormatter(logging.Formatter):
    """Formats a record, its exception included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted_text(super().format(record))


class RedactingStream:
    """A text stream that writes to another without secrets, line by line as they come."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(redacted_text(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
