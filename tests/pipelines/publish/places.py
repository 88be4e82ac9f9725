"""What the tests of every kind of place share."""

from pathlib import Path

from pipelines.config import PathsConfig, TrackingConfig
from pipelines.publish.destinations import open_destination
from pipelines.publish.publication import Destination


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def place(location: str) -> Destination:
    return open_destination(location, TrackingConfig(), PathsConfig())
