"""What a full, read-only or forbidden file system is called, in one line: the path, what was needed, what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.config_errors import causes
from runtime.errors import EnginewrightError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS,)
FORBIDDEN = (errno.EACCES, errno.EPERM)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
ELSEWHERE = "build elsewhere with ENGINEWRIGHT_HOME=<folder>"


class StorageError(EnginewrightError):
    """A file system that cannot take what a build writes."""


@contextmanager
def storage_errors(folder: Path, writer: str) -> Iterator[None]:
    """Turn what the file system of `folder` refuses into one line; `writer` says who wanted to write.

    Raises:
        StorageError: it is full, read-only or forbidden, or something else lies where a folder belongs.
    """
    try:
        yield
    except Exception as error:
        if (line := storage_error(error, folder, writer)) is not None:
            raise line from error
        raise


def storage_error(error: BaseException, folder: Path, writer: str) -> StorageError | None:
    """The line for an exception that `folder`'s file system caused; None for any other or one explained already."""
    chain = causes(error)
    if any(isinstance(link, StorageError) for link in chain):
        return None
    for link in chain:
        if (line := explained(link, folder, writer)) is not None:
            made = StorageError(line)
            made.__cause__ = error
            return made
    return None


def explained(error: BaseException, folder: Path, writer: str) -> str | None:
    """The line for one exception of a chain."""
    code, named = code_of(error), named_path(error)
    path, reason = named or folder, os.strerror(code).lower()
    if code in FULL:
        return (
            f"{path}: {reason}; {writer} had written {megabytes(written(folder))} there and needs more, "
            f"{megabytes(free(folder))} are free; make room, or {ELSEWHERE}"
        )
    if code in READ_ONLY or (code in FORBIDDEN and ours(named, folder)):
        return f"{path}: {writer} cannot write there ({reason}); make it writable, or {ELSEWHERE}"
    if code in NO_FOLDER and ours(named, folder):
        return f"{path}: {writer} needs a folder there ({reason}); move away what is in its place"
    return None


def code_of(error: BaseException) -> int:
    """The error number; 0 where there is none. Libraries in other languages give the text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    return next((code for code in (*FULL, *READ_ONLY) if os.strerror(code) in text), 0)


def named_path(error: BaseException) -> Path | None:
    """The file that an error names."""
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return Path(os.fsdecode(named)) if isinstance(named, str | bytes) else None


def ours(path: Path | None, folder: Path) -> bool:
    """Whether a path lies in `folder` or on the way to it: a user's own files are not what a build writes."""
    return path is not None and (path.is_relative_to(folder) or folder.is_relative_to(path))


def written(folder: Path) -> int:
    """Bytes of all files below a folder, as far as it can be read."""
    return sum(os.lstat(os.path.join(base, name)).st_size for base, _, names in os.walk(folder) for name in names)


def free(folder: Path) -> int:
    """Free bytes of the file system that has `folder`, or will have it."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
