"""What a source hands over, and the copying all sources share."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file


@dataclass(frozen=True)
class Fetched:
    """A source whose files now lie in our folder.

    uri: what the source is called, without this machine's paths. revision: pins its content.
    """

    kind: Literal["gguf", "hf"]
    uri: str
    revision: str


def copy_file(source: Path, destination: Path) -> None:
    """Copy the content of a file; symbolic links are followed.

    A copy, not a hard link: an artifact must not change when its source is edited in place. Where the file system can
    share blocks between files, the copy takes no time and no space.

    Raises:
        EnginewrightError: the file cannot be read, or the copy not written.
    """
    try:
        with source.open("rb") as reader, destination.open("wb") as writer:
            if not _copy_in_kernel(reader, writer):
                shutil.copyfileobj(reader, writer, 1 << 20)
    except OSError as error:
        raise EnginewrightError(
            f"{source}: cannot be copied ({error.strerror}); check permissions and free space"
        ) from error


def _copy_in_kernel(reader: BinaryIO, writer: BinaryIO) -> bool:
    """Copy by reflink where possible. False, with both files at their start, where the kernel cannot."""
    try:
        while os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30):
            pass
    except (AttributeError, OSError):
        reader.seek(0)
        writer.seek(0)
        writer.truncate()
        return False
    return True


def check_sha256(path: Path, expected: str, key: str) -> str:
    """Return a file's sha256, checked against a pin; an empty pin accepts any.

    Args:
        key: the setting that pins it, for the error.

    Raises:
        EnginewrightError: the digests differ.
    """
    found = sha256_file(path)
    if expected and found != expected.lower():
        raise EnginewrightError(
            f"{path.name}: sha256 is {found} but {key} says {expected}; correct {key} if the new file is the right one"
        )
    return found
