"""What is checked of an endpoint before any load: it answers, it takes the key, it has the model."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp

from pipelines.load.client import MAX_LINE_BYTES, error_of
from pipelines.load.options import LoadOptions
from pipelines.redaction import redacted_text
from runtime.errors import EnginewrightError


@asynccontextmanager
async def open_session(options: LoadOptions) -> AsyncIterator[aiohttp.ClientSession]:
    """Make connections without a limit of their number, with the API key where there is one."""
    key = os.environ.get(options.api_key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(headers=headers, connector=connector(), read_bufsize=MAX_LINE_BYTES) as session:
        yield session


def connector() -> aiohttp.TCPConnector:
    """Connections that are given up when idle before a server closes them, which would fail the next request."""
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0)


def base_url(url: str) -> str:
    """The address that the API's paths are appended to: `http://host` means `http://host/v1`."""
    return url.rstrip("/") if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1"


async def find_model(session: aiohttp.ClientSession, options: LoadOptions) -> str:
    """Return the model to ask for.

    Raises:
        EnginewrightError: nothing answers, the key is refused, or there is no such model.
    """
    url = base_url(options.url)
    shown = redacted_text(url)
    try:
        async with session.get(f"{url}/models", timeout=aiohttp.ClientTimeout(total=30)) as response:
            status, text = response.status, await response.text()
            body = await response.json(content_type=None) if status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        reason = redacted_text(str(error)) or type(error).__name__
        raise EnginewrightError(
            f"nothing answers at {shown} ({reason}); start a server, such as make serve, or name its URL"
        ) from error
    except ValueError:
        body = None
    if status in (401, 403):
        raise EnginewrightError(
            f"{shown} refuses the API key ({status}); put a valid one into the environment variable "
            f"{options.api_key_variable}, or name another with --api-key-variable"
        )
    try:
        names = [str(entry["id"]) for entry in body["data"]] if body is not None else []
    except (KeyError, TypeError):
        names = []
    if options.model and (not names or options.model in names):  # not every endpoint lists its models
        return options.model
    if options.model:
        raise EnginewrightError(f"{shown} has no model {options.model!r}; it has {', '.join(names)}")
    if not names:
        said = error_of(status, text)
        raise EnginewrightError(f"{shown} lists no models ({said}); is it an OpenAI endpoint? name one with --model")
    return names[0]
