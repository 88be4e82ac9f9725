"""What is published, where to, and what came of it: types for the destinations and for whoever calls them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from runtime.formats.bundle import Bundle, open_bundle
from runtime.formats.digest import sha256_file
from runtime.formats.manifest import MANIFEST_FILE, expected_files


class PublishedFile(NamedTuple):
    """One file of a publication. name: its path there, with `/`. path: where it is here."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Publication:
    """A bundle, every file of it checked."""

    bundle: Bundle
    files: tuple[PublishedFile, ...]  # by name, the manifest last

    @property
    def name(self) -> str:
        return str(self.bundle.manifest["model"]["name"])


class Outcome(NamedTuple):
    """What publishing did. sent, removed: names of files; both empty where the same bundle was there already."""

    sent: Sequence[str]
    sent_bytes: int
    removed: Sequence[str] = ()
    note: str = ""

    def describe(self, location: str) -> str:
        """One line for a person."""
        if not self.sent and not self.removed:
            return f"{location}: has this bundle already; nothing was sent{self.note}"
        removed = f", {len(self.removed)} removed" if self.removed else ""
        return f"{location}: {len(self.sent)} files sent, {self.sent_bytes / 1e6:.1f} MB{removed}{self.note}"


class Destination(Protocol):
    """A place that takes a bundle and gives it back."""

    location: str  # as it was asked for; errors begin with it

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        """Send what is missing there, and what says that the bundle is whole last.

        replace: another bundle that is there gives way.

        Raises:
            EnginewrightError: something else is there, or the place refuses.
        """

    def pull(self, folder: Path) -> None:
        """Write the bundle's files into an empty folder; the caller checks them.

        Raises:
            EnginewrightError: no bundle is there, or it cannot be read.
        """


def read_publication(path: Path) -> Publication:
    """Open a bundle and list its files with their digests.

    Raises:
        EnginewrightError: the bundle is damaged.
    """
    bundle = open_bundle(path)
    manifest = bundle.path / MANIFEST_FILE
    known = expected_files(manifest.read_bytes(), manifest)
    names = sorted(item.relative_to(bundle.path).as_posix() for item in bundle.path.rglob("*") if item.is_file())
    files = [
        PublishedFile(name, bundle.path / name, *known[name]) if name in known else file_here(name, bundle.path / name)
        for name in names
    ]
    return Publication(bundle, tuple(sorted(files, key=lambda file: (file.name == MANIFEST_FILE, file.name))))


def file_here(name: str, path: Path) -> PublishedFile:
    """A file that no manifest vouches for."""
    return PublishedFile(name, path, path.stat().st_size, sha256_file(path))


def differing(files: Sequence[PublishedFile], there: Mapping[str, str]) -> list[PublishedFile]:
    """The files that are missing among those there, digests by name, or are others."""
    return [file for file in files if there.get(file.name) != file.sha256]
