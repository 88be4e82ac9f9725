"""What goes wrong between this machine and the Hub, each in one line with its remedy, and no token in any."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.redaction import HIDDEN, redacted
from pipelines.sources.hub_address import HubAddress
from runtime.errors import EnginewrightError


@contextmanager
def hub_errors(address: HubAddress) -> Iterator[None]:
    """Raise the library's exceptions as ours.

    The original exception is dropped: tracebacks are kept with failed builds, and its text is not ours to vouch for.
    """
    import httpx2
    from huggingface_hub import errors

    try:
        with quiet_library():
            yield
    except (httpx2.HTTPError, errors.RevisionResolutionError, errors.XetDownloadError, OSError, ValueError) as error:
        raise EnginewrightError(explain(error, address)) from None


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library's log lines, which quote signed addresses, out of our logs."""
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)


def explain(error: Exception, address: HubAddress) -> str:
    """The line for one of the library's exceptions."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the library looked into its cache after this
    page = f"{redacted(constants.ENDPOINT)}/{address.repo}"
    token = "the one in HF_TOKEN" if get_token() else "there is none: set HF_TOKEN"
    # A mistyped path of two parts reads as a name of the Hub.
    here = "" if Path(address.repo).exists() else f", and no folder {address.repo} is here"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.OfflineModeIsEnabled | errors.RevisionResolutionError):
        return not_cached(address)
    if isinstance(error, errors.GatedRepoError):
        return f"{address}: is gated; accept its terms at {page} with the account of your token ({token})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{address}: no such repository, or it is private{here}; check the name, and your token ({token})"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address}: has no revision {address.revision!r}; see {page}/refs for those there are"
    if status in (401, 403):
        return f"{address}: the Hub refuses the token (HTTP {status}, {token}); make a new one that may read it"
    return (
        f"{address}: the Hub cannot be reached ({_reason(error)}){here}; check the network, "
        "or set HF_HUB_OFFLINE=1 to use what was downloaded before"
    )


def not_cached(address: HubAddress, file: str = "") -> str:
    what = f"{file} of it" if file else "it"
    return f"{address}: HF_HUB_OFFLINE is set and {what} was never downloaded; unset HF_HUB_OFFLINE for one build"


def _reason(error: Exception) -> str:
    """The first line of an exception, with whatever could be a secret taken out."""
    from huggingface_hub import get_token

    text = (str(error).strip().splitlines() or [""])[0]
    token = get_token()
    text = text.replace(token, HIDDEN) if token else text
    return f"{type(error).__name__}: {redacted(text.partition('?')[0])}"
