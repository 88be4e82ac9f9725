"""Settings as plain data: for keys, for files, and for the eyes of others with secrets taken out."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

SECRET_KEY = re.compile(r"(^|_)token$|password|secret|api_?key|credential", re.IGNORECASE)
USER_IN_URI = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "***"


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths and enum members as strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    return str(value) if isinstance(value, Path) else value


def redacted(value: Any, key: str = "") -> Any:
    """The same plain data without passwords: the values of telling keys, and the user part of URIs."""
    if isinstance(value, Mapping):
        return {name: redacted(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, key) for item in value]
    if isinstance(value, str):
        return HIDDEN if value and SECRET_KEY.search(key) else USER_IN_URI.sub(f"{HIDDEN}@", value)
    return value


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts as dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
