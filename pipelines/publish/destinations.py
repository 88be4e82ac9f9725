"""From an address to a destination. Each kind is imported when it is named, as its libraries are heavy."""

import re

from pipelines.config import PathsConfig, TrackingConfig
from pipelines.publish.errors import shown
from pipelines.publish.publication import Destination
from runtime.errors import EnginewrightError
from runtime.formats.archive import SUFFIX

FORMS = (
    "a folder, <file>.tar.zst, oci:<folder>, oci://<registry>/<name>:<tag>, triton:<folder>, hub:<org>/<name>, "
    "mlflow:[<name>], or a URL of fsspec such as s3://<bucket>/<path>"
)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def open_destination(location: str, tracking: TrackingConfig, paths: PathsConfig) -> Destination:
    """The destination of an address.

    tracking, paths: the store that `mlflow:` means.

    Raises:
        EnginewrightError: no address of a kind there is; names them all.
    """
    if location.startswith("oci://"):
        from pipelines.publish.oci_registry import OciRegistry

        return OciRegistry(location)
    kind, _, rest = location.partition(":")
    if kind == "mlflow":
        from pipelines.publish.mlflow_registry import MlflowRegistry

        return MlflowRegistry(rest, tracking, paths)
    if rest and kind == "oci":
        from pipelines.publish.oci_layout import OciLayout

        return OciLayout(rest)
    if rest and kind == "triton":
        from pipelines.publish.triton import TritonRepository

        return TritonRepository(rest)
    if rest and kind == "hub":
        from pipelines.publish.hub import HubRepository

        return HubRepository(rest)
    return _open_files(location)


def _open_files(location: str) -> Destination:
    """A folder, a URL, or an archive."""
    is_url = "://" in location
    if not location or (SCHEME.match(location) and not is_url) or (is_url and location.endswith(SUFFIX)):
        raise EnginewrightError(f"{shown(location)!r} is no place for a bundle; give {FORMS}")
    if location.endswith(SUFFIX):
        from pipelines.publish.archive_file import ArchiveFile

        return ArchiveFile(location)
    from pipelines.publish.folder import Folder

    return Folder(location)
