"""What goes wrong between a bundle and the place it is published to, each in one line that names the place."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.redaction import redacted_text
from runtime.errors import EnginewrightError

AGAIN = "repeat the command"
MAX_REASON_CHARS = 300


@contextmanager
def place_errors(location: str) -> Iterator[None]:
    """Raise whatever a file system or a library of one raises as one line, without secrets.

    Libraries for remote places raise what they please, so every exception that is not ours becomes a line here.

    Raises:
        EnginewrightError: the line.
    """
    try:
        yield
    except EnginewrightError:
        raise
    except Exception as error:
        raise EnginewrightError(f"{shown(location)}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What happened and what to do, for one exception."""
    if isinstance(error, ImportError):
        return f"needs a library that is not installed ({error}); install it"
    if isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{reason} ({error.filename or 'there'}); make room and {AGAIN}, which goes on from what is there"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{reason} ({error.filename or 'there'}); get the right to write and read there, or name another"
        return f"{reason} ({error.filename or 'there'}); name another place, or {AGAIN}"
    if isinstance(error, PermissionError):
        return f"the place refuses ({reason_of(error)}); check the credentials in the environment"
    return f"cannot be used ({reason_of(error)}); check the address, the network and the credentials, and {AGAIN}"


def reason_of(error: Exception) -> str:
    """An exception's first line, without secrets."""
    text = (str(error).strip().splitlines() or [""])[0]
    return redacted_text(f"{type(error).__name__}: {text}")[:MAX_REASON_CHARS]


def shown(location: str) -> str:
    """A location as it may be printed."""
    return redacted_text(location)


def another_bundle(location: str, there: str, bundle_id: str) -> EnginewrightError:
    return EnginewrightError(
        f"{shown(location)}: has another bundle ({there[:12]}, this one is {bundle_id[:12]}); publish with "
        "--replace, or name another place"
    )


def no_bundle(location: str, what: str) -> EnginewrightError:
    return EnginewrightError(f"{shown(location)}: no bundle there ({what}); check the address")
