"""Remove cached stages by age and size, least recently used first, and what killed builds left.

Never what a running build makes or uses, and never a bundle: those are copies.
"""

import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from pipelines.cache import METADATA_FILE, Entry
from pipelines.config import PathsConfig
from pipelines.stage import CUBINS
from pipelines.workspace import lock_of
from runtime.errors import EnginewrightError

DAY_S = 86_400.0
LEFTOVER_DAYS = 7.0  # how long the report of a failed stage and a killed build's scratch folder are kept
UNFINISHED = (".tmp", ".old")  # of no use to anybody once their build is gone
SCRATCH = ".scratch"


@dataclass(frozen=True)
class Limits:
    """None: no such limit."""

    max_age_days: float | None = None  # since an entry was last used
    max_gb: float | None = None  # of all entries together, 1e9 bytes each

    def __post_init__(self) -> None:
        for name in ("max_age_days", "max_gb"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise EnginewrightError(f"{name} is {value}; it must be 0 or more")


class Found(NamedTuple):
    """A folder that may go. `lock` keeps others from it; empty where no build would touch it."""

    path: Path
    lock: Path | None
    used_at: float  # seconds since the epoch
    why: str


@dataclass
class Disk:
    """Bytes that removing folders frees: those of files whose every link is removed. Stages share files by links."""

    links: Counter[tuple[int, int]] = field(default_factory=Counter)
    freed: int = 0

    def remove(self, folder: Path) -> int:
        """Count a folder as removed; give the bytes that this frees."""
        before = self.freed
        for path in [folder, *folder.rglob("*")]:
            with suppress(FileNotFoundError):
                status = path.lstat()
                if not path.is_dir():
                    self.links[status.st_dev, status.st_ino] += 1
                    if self.links[status.st_dev, status.st_ino] == status.st_nlink:
                        self.freed += status.st_size
        return self.freed - before


@dataclass
class Cleaned:
    """What was removed, or with a dry run would be; and what had to stay."""

    removed: list[tuple[Found, int]] = field(default_factory=list)
    in_use: list[Found] = field(default_factory=list)
    kept: int = 0
    kept_bytes: int = 0

    @property
    def freed_bytes(self) -> int:
        return sum(size for _, size in self.removed)


def clean(paths: PathsConfig, limits: Limits, dry: bool = False) -> Cleaned:
    """Remove leftovers, then entries past the age limit, then the least recently used until the size limit holds.

    Raises:
        EnginewrightError: a folder cannot be removed.
    """
    done, disk = Cleaned(), Disk()
    for found in leftovers(paths, limits):
        remove(found, done, disk, dry)
    waiting = sorted(entries(paths.cache), key=lambda found: found.used_at)
    left = total_bytes([found.path for found in waiting])
    oldest = None if limits.max_age_days is None else time.time() - limits.max_age_days * DAY_S
    for found in waiting:
        too_old = oldest is not None and found.used_at <= oldest
        too_much = limits.max_gb is not None and left > limits.max_gb * 1e9
        why = f"older than {limits.max_age_days:g} days" if too_old else f"above {limits.max_gb or 0:g} GB"
        if (too_old or too_much) and remove(found._replace(why=why), done, disk, dry):
            left -= done.removed[-1][1]
        else:
            done.kept += 1
    done.kept_bytes = left
    return done


def entries(cache: Path) -> Iterator[Found]:
    """Every folder that is or was an artifact."""
    for folder in sorted(cache.glob("*/*")):
        if folder.is_dir() and folder.suffix not in (*UNFINISHED, SCRATCH):
            yield Found(folder, entry_lock(folder), last_used(folder), "")


def leftovers(paths: PathsConfig, limits: Limits) -> Iterator[Found]:
    """What builds left that were killed or failed."""
    days = LEFTOVER_DAYS if limits.max_age_days is None else limits.max_age_days
    oldest = time.time() - days * DAY_S
    for folder in sorted(paths.cache.glob("*/*")):
        lock = entry_lock(folder.with_suffix(""))
        if folder.suffix in UNFINISHED:
            yield Found(folder, lock, folder.stat().st_mtime, "left by a killed build")
        elif folder.suffix == SCRATCH and folder.stat().st_mtime <= oldest:
            yield Found(folder, lock, folder.stat().st_mtime, f"scratch, unchanged for {days:g} days")
    for folder in sorted(paths.cache.with_name("uncached").glob("*/")):
        yield Found(folder, lock_of(folder), folder.stat().st_mtime, "left by a killed build")
    for file in sorted(paths.cache.glob(f"{CUBINS}/*")):
        if file.stat().st_mtime <= oldest:
            yield Found(file, None, file.stat().st_mtime, f"a kernel's image, unused for {days:g} days")
    for folder in sorted(paths.failed.glob("*/")):
        if folder.stat().st_mtime <= oldest:
            yield Found(folder, None, folder.stat().st_mtime, f"report of a failed stage, {days:g} days old")


def last_used(folder: Path) -> float:
    with suppress(OSError):
        return (folder / METADATA_FILE).stat().st_mtime
    return folder.stat().st_mtime  # damaged: no artifact


def remove(found: Found, done: Cleaned, disk: Disk, dry: bool) -> bool:
    """Remove one folder unless somebody uses it; in a dry run only look whether somebody does."""
    with ExitStack() as stack:
        if not (take(found, stack) if not dry else is_free(found)):
            done.in_use.append(found)
            return False
        done.removed.append((found, disk.remove(found.path)))
        if not dry:
            discard(found.path)
            if found.lock is not None:
                found.lock.unlink(missing_ok=True)  # whoever waits for it sees that it is gone, and makes another
        return True


def take(found: Found, stack: ExitStack) -> bool:
    """Lock a folder against builds that would make it and against those that use it."""
    try:
        if found.lock is not None:
            stack.enter_context(FileLock(found.lock, timeout=0))
    except Timeout:
        return False
    except OSError as error:
        raise cannot_remove(found.path, error) from error
    return lock_now(found.path, stack)


def is_free(found: Found) -> bool:
    """Whether `take` would succeed, without making a lock file."""
    with ExitStack() as stack:
        unlocked = found.lock is None or not found.lock.exists() or lock_now(found.lock, stack)
        return unlocked and lock_now(found.path, stack)


def lock_now(path: Path, stack: ExitStack) -> bool:
    """Take the exclusive lock of a file or folder until `stack` closes; False where another holds one."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def discard(folder: Path) -> None:
    """Take a folder away in one step, then its files: nobody sees half an artifact. A file goes at once."""
    try:
        if not folder.is_dir():
            folder.unlink(missing_ok=True)
            return
        doomed = folder if folder.suffix in UNFINISHED else Entry(folder).replaced
        if doomed != folder:
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise cannot_remove(folder, error) from error


def cannot_remove(folder: Path, error: OSError) -> EnginewrightError:
    return EnginewrightError(f"{folder}: cannot be removed ({error.strerror or error}); check its permissions")


def entry_lock(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def total_bytes(folders: list[Path]) -> int:
    """Bytes of all files below, each counted once however many links it has."""
    files = (path.lstat() for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum({(status.st_dev, status.st_ino): status.st_size for status in files}.values())
