"""Cleaning the cache: least recently used first, within its limits, and never what a build makes or uses."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from pipelines.cache import Cache, Entry, Metadata
from pipelines.cleaning import Limits, clean, total_bytes
from pipelines.config import PathsConfig
from pipelines.stage import CUBINS
from runtime.errors import EnginewrightError

MB = 10**6
DAY_S = 86_400


@pytest.fixture
def paths(tmp_path: Path) -> PathsConfig:
    return PathsConfig(root=str(tmp_path))


def make_entry(paths: PathsConfig, key: str, days_ago: float, stage: str = "convert", size: int = MB) -> Entry:
    entry = Cache(paths.cache).entry(stage, key)
    with entry.lock():
        (entry.begin() / "content/weights.bin").write_bytes(b"w" * size)
        entry.publish(Metadata(stage, key, {}))
    os.utime(entry.folder / "artifact.json", (time.time() - days_ago * DAY_S,) * 2)
    return entry


def kept(paths: PathsConfig) -> set[str]:
    return {path.parent.name for path in paths.cache.glob("*/*/artifact.json")}


def test_an_entry_goes_by_the_time_of_its_last_use_not_by_when_it_was_made(paths: PathsConfig) -> None:
    make_entry(paths, "old", 10)
    make_entry(paths, "used", 10).mark_used()
    done = clean(paths, Limits(max_age_days=5))
    assert kept(paths) == {"used"}
    assert [found.path.name for found, _ in done.removed] == ["old"]
    assert done.freed_bytes > MB
    assert list(paths.cache.glob("*/old*")) == []


def test_the_least_recently_used_go_until_the_size_fits(paths: PathsConfig) -> None:
    for days, key in enumerate(["newest", "newer", "older", "oldest"]):
        make_entry(paths, key, days)
    done = clean(paths, Limits(max_gb=0.0025))
    assert kept(paths) == {"newest", "newer"}
    assert done.kept == 2
    assert done.kept_bytes == total_bytes([path.parent for path in paths.cache.glob("*/*/artifact.json")])


def test_bytes_that_another_entry_links_to_are_not_counted_as_freed(paths: PathsConfig) -> None:
    first, second = make_entry(paths, "a", 9), make_entry(paths, "b", 1, stage="package", size=1)
    os.link(first.content / "weights.bin", second.content / "linked.bin")
    assert clean(paths, Limits(max_age_days=5)).freed_bytes < MB
    assert clean(paths, Limits(max_age_days=0)).freed_bytes > MB


@pytest.mark.parametrize("dry", [True, False])
def test_what_a_build_uses_or_makes_stays(paths: PathsConfig, dry: bool) -> None:
    used, made, free = (make_entry(paths, key, 9) for key in ("used", "made", "free"))
    build = Cache(paths.cache)
    build.hold(used)
    with made.lock():
        (made.temporary).mkdir()
        done = clean(paths, Limits(max_age_days=1), dry)
    assert {found.path.name for found in done.in_use} == {"used", "made", "made.tmp"}
    assert kept(paths) == {"used", "made"} | ({"free"} if dry else set())
    assert [found.path for found, _ in done.removed] == [free.folder]
    build.release()
    clean(paths, Limits(max_age_days=1))
    assert kept(paths) == set()


def test_a_build_that_was_killed_holds_nothing(paths: PathsConfig) -> None:
    used = make_entry(paths, "used", 9)
    if (child := os.fork()) == 0:
        Cache(paths.cache).hold(used)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert len(clean(paths, Limits(max_age_days=1)).removed) == 1


def test_leftovers_go_without_any_limit_and_reports_and_scratch_when_they_are_old(paths: PathsConfig) -> None:
    make_entry(paths, "entry", 400)
    for name in ("cache/convert/k.tmp", "cache/convert/k.old", "cache/convert/k.scratch", "cache/convert/n.scratch",
                 "failed/verify-1", "failed/verify-2", "uncached/x", "bundles/.new"):  # fmt: skip
        folder = Path(paths.root, name)
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
        if name.endswith(("k.scratch", "verify-1")):
            os.utime(folder, (0, 0))
    done = clean(paths, Limits())
    assert {found.path.name for found, _ in done.removed} == {"k.tmp", "k.old", "k.scratch", "verify-1", "x"}
    assert done.freed_bytes == 5
    assert kept(paths) == {"entry"}
    assert Path(paths.root, "bundles/.new").exists()
    assert Path(paths.root, "failed/verify-2").exists()


def test_images_of_kernels_go_when_no_build_took_them_for_long(paths: PathsConfig) -> None:
    cubins = paths.cache / CUBINS
    cubins.mkdir(parents=True)
    for name, days_ago in (("old.image", 10), ("new.image", 1)):
        (cubins / name).write_bytes(b"x" * MB)
        os.utime(cubins / name, (time.time() - days_ago * DAY_S,) * 2)
    assert clean(paths, Limits(), dry=True).freed_bytes == MB
    assert [found.path.name for found, _ in clean(paths, Limits()).removed] == ["old.image"]
    assert [path.name for path in cubins.iterdir()] == ["new.image"]


def test_a_dry_run_changes_nothing(paths: PathsConfig) -> None:
    make_entry(paths, "old", 10)
    (paths.cache / "convert/k.tmp").mkdir()
    before = {path: path.lstat().st_mtime_ns for path in Path(paths.root).rglob("*")}
    done = clean(paths, Limits(max_age_days=1), dry=True)
    assert len(done.removed) == 2
    assert {path: path.lstat().st_mtime_ns for path in Path(paths.root).rglob("*")} == before


def test_an_empty_store_is_clean(paths: PathsConfig) -> None:
    assert clean(paths, Limits(max_gb=0)).removed == []
    assert not list(Path(paths.root).iterdir())


@pytest.mark.parametrize("limits", [{"max_gb": -1.0}, {"max_age_days": float("nan")}])
def test_a_limit_that_is_none_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(EnginewrightError, match="must be 0 or more"):
        Limits(**limits)


def test_a_hit_is_held_and_marked(paths: PathsConfig) -> None:
    entry = make_entry(paths, "a", 9)
    cache = Cache(paths.cache)
    cache.hold(entry)
    descriptor = os.open(entry.folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    cache.release()
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
