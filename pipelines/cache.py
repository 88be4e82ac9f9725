"""Stage outputs on disk: one folder for each stage and key, complete or absent, whatever kills the process.

    <root>/<stage>/<key>/content/        what the stage wrote
    <root>/<stage>/<key>/artifact.json   written last: key, digest, files, metrics; a folder without it is no artifact
    <root>/<stage>/<key>/stage.log
    <root>/<stage>/<key>.{tmp,old,scratch,lock}   a build under way

The time of change of artifact.json is when the artifact was last used. A build holds a shared lock on the folder of
each artifact that it uses, so that pipelines/cleaning.py leaves it; the lock ends with the process, however it ends.
Knows nothing of what a key is made of.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.digest import FileEntry, content_digest, folder_entries
from pipelines.stage import Artifact
from runtime.formats.digest import sha256_file

log = logging.getLogger(__name__)
METADATA_FILE = "artifact.json"
LOG_FILE = "stage.log"
LAYOUT = 1  # of an entry's folder and its artifact.json; entries of another version are built again


@dataclass(frozen=True)
class Metadata:
    """What is kept about an artifact, beside it."""

    stage: str
    key: str
    made_from: Mapping[str, Any]  # what the key digests, readable
    digest: str = ""
    files: tuple[FileEntry, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: str = ""
    seconds: float = 0.0
    run_id: str = ""  # of the tracked run that made it
    layout: int = LAYOUT


@dataclass(frozen=True)
class Entry:
    """One stage and key. Only the holder of `lock` calls anything that writes."""

    folder: Path

    @property
    def content(self) -> Path:
        return self.folder / "content"

    @property
    def temporary(self) -> Path:
        return self.folder.with_name(self.folder.name + ".tmp")

    @property
    def scratch(self) -> Path:
        return self.folder.with_name(self.folder.name + ".scratch")

    @property
    def replaced(self) -> Path:
        return self.folder.with_name(self.folder.name + ".old")

    @property
    def lock_path(self) -> Path:
        return self.folder.with_name(self.folder.name + ".lock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other build from working on the same key."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another build is making %s; waiting for it", self.folder.parent.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def load(self, report: bool = False) -> Metadata | None:
        """What is kept, if it is complete: a file that is gone or has another size makes it absent.

        Args:
            report: log why something that is there does not count.
        """
        try:
            values = json.loads((self.folder / METADATA_FILE).read_text())
            files = tuple(FileEntry(**entry) for entry in values.pop("files"))
            metadata = Metadata(files=files, **values)
            if metadata.layout != LAYOUT:
                raise ValueError(f"layout {metadata.layout} of another version, this one reads {LAYOUT}")
            damaged = [entry.path for entry in files if file_size(self.content / entry.path) != entry.size]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            metadata, damaged = None, [f"{METADATA_FILE}: {error}"]
        if damaged and report:
            log.warning("cached %s is damaged (%s); it is built again", self.folder.parent.name, ", ".join(damaged))
        return None if damaged else metadata

    def mark_used(self) -> None:
        """Make the time of change of artifact.json now, unless this cache may only be read."""
        with suppress(OSError):
            os.utime(self.folder / METADATA_FILE)

    def damaged_files(self, metadata: Metadata) -> list[str]:
        """Files whose bytes are not those that were published; reads all of them."""
        return [entry.path for entry in metadata.files if sha256_file(self.content / entry.path) != entry.sha256]

    def tidy(self) -> None:
        """Remove what a build left that was killed at the end of publication; the artifact itself is complete."""
        leftovers = [path for path in (self.temporary, self.replaced, self.scratch) if os.path.lexists(path)]
        if not leftovers:
            return
        with suppress(Timeout, OSError), FileLock(self.lock_path, timeout=0):  # in use, or a cache that is read alone
            for path in leftovers:
                remove(path)

    def begin(self) -> Path:
        """Make an empty temporary folder with an empty `content/`, removing what a killed build left."""
        for leftover in (self.temporary, self.replaced):
            remove(leftover)
        (self.temporary / "content").mkdir(parents=True)
        self.scratch.mkdir(exist_ok=True)
        return self.temporary

    def publish(self, metadata: Metadata, previous: Metadata | None = None) -> Metadata:
        """Digest the temporary folder and put it in place of `previous` in one step."""
        files = folder_entries(self.temporary / "content")
        values = {**vars(metadata), "files": files, "digest": content_digest(files)}
        published = Metadata(**values)
        for entry in files:
            sync(self.temporary / "content" / entry.path)
        write_synced(self.temporary / METADATA_FILE, json.dumps(asdict(published), indent=1, sort_keys=True))
        if previous is not None and previous.digest == published.digest and not self.damaged_files(previous):
            # Another build may be reading the same bytes: only what is told about them changes.
            for name in (LOG_FILE, METADATA_FILE):
                os.replace(self.temporary / name, self.folder / name)
            shutil.rmtree(self.temporary)
        else:
            if self.folder.exists():
                os.rename(self.folder, self.replaced)
            os.rename(self.temporary, self.folder)
            remove(self.replaced)
        sync(self.folder.parent)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return published

    def artifact(self, metadata: Metadata) -> Artifact:
        return Artifact(path=self.content, digest=metadata.digest, metrics=dict(metadata.metrics))


@dataclass(frozen=True)
class Cache:
    """All entries, and the locks on those that this build uses."""

    root: Path
    held: list[int] = field(default_factory=list, compare=False)  # file descriptors

    def entry(self, stage: str, key: str) -> Entry:
        return Entry(self.root / stage / key)

    def hold(self, entry: Entry) -> None:
        """Keep a folder from being cleaned away until `release`; one that is absent needs no lock."""
        with suppress(FileNotFoundError):
            self.held.append(os.open(entry.folder, os.O_RDONLY))
            with suppress(OSError):  # a file system without such locks: cleaning cannot take them either, and skips it
                fcntl.flock(self.held[-1], fcntl.LOCK_SH)

    def release(self) -> None:
        while self.held:
            os.close(self.held.pop())


def remove(path: Path) -> None:
    """Remove whatever is there, as far as it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def write_synced(path: Path, text: str) -> None:
    path.write_text(text)
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
