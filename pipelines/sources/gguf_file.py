"""A `.gguf` file on this machine as a model source."""

from pathlib import Path

from pipelines.config import ModelConfig
from pipelines.sources.fetched import Fetched, check_sha256, copy_file
from runtime.errors import EnginewrightError


def fetch_gguf_file(config: ModelConfig, folder: Path) -> Fetched:
    """Copy the file into `folder`. It is the download and the file in one: both pins are checked.

    Raises:
        EnginewrightError: unreadable, or not the pinned file.
    """
    path = Path(config.source)
    check_magic(path)
    copy = folder / path.name
    copy_file(path, copy)
    check_sha256(copy, config.file_sha256, "model.file_sha256")
    digest = check_sha256(copy, config.sha256, "model.sha256")
    return Fetched("gguf", path.name, f"sha256:{digest}")


def check_magic(path: Path) -> None:
    """Raise unless the file begins as GGUF files do: a cheap look before a long copy."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EnginewrightError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from error
    if magic != b"GGUF":
        raise EnginewrightError(f"{path}: starts with {magic!r} instead of b'GGUF': not a GGUF file; fetch it again")
