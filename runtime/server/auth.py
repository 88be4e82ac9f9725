"""API keys: read from a file and the environment, asked of every /v1 request."""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.errors import EnginewrightError
from runtime.server.errors import ApiError

KEYS_VARIABLE = "ENGINEWRIGHT_API_KEYS"


def load_keys(file: Path | None, environment: Mapping[str, str]) -> list[str]:
    """Keys of a file, one a line, `#` for comments, and of ENGINEWRIGHT_API_KEYS, between commas. None is no check.

    Raises:
        EnginewrightError: the file is unreadable, or one of the two is given and holds no key.
    """
    keys = []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise EnginewrightError(f"{file}: the API keys cannot be read ({error}); name a text file") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise EnginewrightError(f"{file}: holds no API key; write one per line, or leave --api-key-file away")
    if KEYS_VARIABLE in environment:
        named = [key.strip() for key in environment[KEYS_VARIABLE].split(",") if key.strip()]
        if not named:
            raise EnginewrightError(f"{KEYS_VARIABLE} is set and holds no API key; write some, or unset it")
        keys += named
    return keys


class KeyCheck:
    """ASGI middleware: a request under /v1/ without a known key gets 401, before its body is read."""

    def __init__(self, app: ASGIApp, keys: list[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._digests or scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self._app(scope, receive, send)
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = header.partition(b" ")
        # Every key is compared, each in constant time, so that how long it takes tells nothing.
        known = [hmac.compare_digest(_digest(key.strip()), digest) for digest in self._digests]
        if scheme.lower() == b"bearer" and any(known):
            return await self._app(scope, receive, send)
        message = "this server needs an API key, as the header `Authorization: Bearer <key>`"
        error = ApiError(401, "unknown API key" if key else message, "invalid_api_key")
        error.headers["WWW-Authenticate"] = "Bearer"
        scope["state"]["record"].error = error.message
        return await error.response()(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
