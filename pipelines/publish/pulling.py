"""A published bundle as a folder again."""

import os
import shutil
from pathlib import Path

from pipelines.publish.publication import Destination
from runtime.errors import EnginewrightError
from runtime.formats.bundle import Bundle, open_bundle


def pull(destination: Destination, out: Path) -> Bundle:
    """Bring a bundle into the new folder `out`, which appears whole, every file of it checked, or not at all.

    Raises:
        EnginewrightError: `out` exists or cannot be written, no bundle is there, or it is damaged.
    """
    if out.exists():
        raise EnginewrightError(f"{out}: exists already; name a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        destination.pull(temporary)
        bundle = open_bundle(temporary)
        os.rename(temporary, out)
    except OSError as error:
        raise EnginewrightError(f"{out}: cannot be written ({error.strerror}); name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(out, bundle.bundle_id, bundle.manifest)
