"""A `.gguf` file on this machine as a model source."""

from pathlib import Path

from pipelines.config import ModelConfig
from pipelines.sources.fetched import Fetched, check_sha256, copy_file


def fetch_gguf_file(config: ModelConfig, folder: Path) -> Fetched:
    """Copy the file into `folder`. It is the download and the file in one: both pins are checked.

    Raises:
        EnginewrightError: unreadable, truncated, or not the pinned file.
    """
    path = Path(config.source)
    check_gguf(path)
    copy = folder / path.name
    copy_file(path, copy)
    check_sha256(copy, config.file_sha256, "model.file_sha256")
    digest = check_sha256(copy, config.sha256, "model.sha256")
    return Fetched("gguf", path.name, f"sha256:{digest}")


def check_gguf(path: Path) -> None:
    """Raise unless the file is a whole GGUF file: a truncated one is refused before it is copied or cached."""
    from pipelines.convert.gguf_file import GgufFile

    GgufFile(path)
