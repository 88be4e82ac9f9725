"""Where a build keeps its stages: the cache, or with cache=off a folder that ends with the build."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.cache import Cache
from pipelines.config import BuildConfig, CachePolicy


@contextmanager
def open_cache(config: BuildConfig) -> Iterator[Cache]:
    """Give the place for stage outputs."""
    if config.cache is not CachePolicy.off:
        cache = Cache(config.paths.cache)
        try:
            yield cache
        finally:
            cache.release()
        return
    parent = config.paths.cache.with_name("uncached")
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(dir=parent))
    with FileLock(lock_of(folder)):
        cache = Cache(folder)
        try:
            yield cache
        finally:
            cache.release()
            shutil.rmtree(folder, ignore_errors=True)
            lock_of(folder).unlink(missing_ok=True)


def remove_abandoned(parent: Path) -> None:
    """Remove folders whose build was killed: nobody holds their lock any more."""
    for folder in parent.iterdir():
        if folder.is_dir():
            try:
                with FileLock(lock_of(folder), timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
                    lock_of(folder).unlink(missing_ok=True)
            except Timeout:
                continue


def lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")
