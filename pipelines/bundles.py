"""Puts a packaged bundle where people look for it: `<bundles>/<name>-<id12>`, and `latest` beside it.

A bundle is a copy, not hard links: whoever edits or damages it must not reach into the cache. Where the file system
can share blocks between files (btrfs, XFS), the copy takes no space.
"""

import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock

from pipelines.cache import remove
from pipelines.digest import FileEntry
from pipelines.runner import StageResult
from runtime.formats.digest import sha256_file
from runtime.trust.signatures import SIGNATURES_DIR

log = logging.getLogger(__name__)
MANIFEST_FILE = "manifest.json"
LATEST = "latest"
LOCK = ".lock"
UNFINISHED = ".unfinished-"
CHUNK_BYTES = 2**30


def bundle_id(folder: Path) -> str:
    """A bundle's id: the digest of its manifest, which names the digest of everything else that is deterministic."""
    return sha256_file(folder / MANIFEST_FILE)


def place_bundle(package: StageResult, name: str, bundles: Path) -> Path:
    """Copy a package's content unless the same is there already, and point `latest` at it."""
    source = package.artifact.path
    folder = bundles / f"{name}-{bundle_id(source)[:12]}"
    files = package.metadata.files
    if is_same(files, source, folder) and os.path.realpath(bundles / LATEST) == os.path.realpath(folder):
        return folder
    bundles.mkdir(parents=True, exist_ok=True)
    with FileLock(bundles / LOCK):
        for leftover in bundles.glob(f"{UNFINISHED}*"):  # of a build that was killed: nobody else is here
            remove(leftover)
        if not is_same(files, source, folder):
            replace_folder(source, folder)
        point_to(bundles / LATEST, folder.name)
    return folder


def is_same(files: tuple[FileEntry, ...], source: Path, folder: Path) -> bool:
    """Whether each file has the size and the time of change of its original, which a copy keeps; it may be signed."""
    placed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if {name for name in placed if not Path(name).is_relative_to(SIGNATURES_DIR)} != {entry.path for entry in files}:
        return False
    for entry in files:
        original, copied = (source / entry.path).stat(), folder / entry.path
        if (copied.stat().st_size, copied.stat().st_mtime_ns) != (original.st_size, original.st_mtime_ns):
            return False
    return True


def replace_folder(source: Path, folder: Path) -> None:
    """Copy beside the place and swap, so that the place never holds half a bundle."""
    copied, old = (folder.with_name(f"{UNFINISHED}{kind}") for kind in ("new", "old"))
    try:
        shutil.copytree(source, copied, copy_function=copy_file)
        if folder.exists():
            log.info("%s differs from what was packaged; replacing it", folder)
            os.rename(folder, old)
        os.rename(copied, folder)
    finally:
        shutil.rmtree(copied, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def copy_file(source: str, copied: str) -> None:
    """Copy bytes, sharing blocks where the file system can, and the time of change."""
    with open(source, "rb") as original, open(copied, "wb") as copy:
        try:
            while os.copy_file_range(original.fileno(), copy.fileno(), CHUNK_BYTES):
                pass
        except OSError:  # two file systems, or one that cannot
            original.seek(0)
            copy.seek(0)
            shutil.copyfileobj(original, copy, 2**20)
    shutil.copystat(source, copied)


def point_to(link: Path, name: str) -> None:
    """Make a relative symbolic link, replacing an older one in one step."""
    fresh = link.with_name(f"{UNFINISHED}link")
    fresh.symlink_to(name, target_is_directory=True)
    os.replace(fresh, link)
