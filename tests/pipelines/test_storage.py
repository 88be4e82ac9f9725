"""A disk that is full, a folder that cannot be written, a cache of another version: one line, and no damage.

A disk of its own needs the right to mount one; where that is missing, a limit on the size of files is still tried.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cache import Entry
from runtime.formats.bundle import open_bundle
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from tests.pipelines.fork_server import Ended, ForkServer, Job
from tests.pipelines.running_stages import STAGES
from tests.pipelines.tiny_models import make_hf_folder

SETTINGS = ["experiment=smoke", "precision=fp32", "tracking=off"]
# Where the tiny model's build gets stuck on a disk of so many bytes.
SIZES = {64_000: "fetch", 240_000: "convert", 380_000: "verify", 500_000: "bench", 640_000: "the build"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("models") / "tiny", hidden=32, max_len=1024)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system, or change the options of the one that is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        remount = ["remount"] if folder.is_mount() else []
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*remount, *options]), "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"no file system may be mounted here ({done.stderr.strip()})")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def build(fork_server: ForkServer, model: Path, tmp_path: Path) -> Callable[..., Ended]:
    def run(home: Path, *overrides: str, **limits: int) -> Ended:
        job = Job([f"model={model}", *SETTINGS, *overrides], {"ENGINEWRIGHT_HOME": str(home)}, f"{tmp_path}/log")
        (ended,) = fork_server.run(replace(job, **limits))
        return ended

    return run


def error_of(ended: Ended) -> str:
    """The one line of a build that failed."""
    assert ended.code == 1, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.stderr.splitlines()[-1:] == errors
    return errors[0]


def check_undamaged(home: Path) -> None:
    assert not list(home.rglob("*.tmp"))
    for path in home.glob("cache/*/*/artifact.json"):
        entry = Entry(path.parent)
        metadata = entry.load()
        assert metadata is not None
        assert entry.damaged_files(metadata) == []
    for path in home.glob("bundles/*/manifest.json"):
        open_bundle(path.parent)
    assert not list(home.glob("bundles/.unfinished-*"))


@pytest.mark.parametrize("size", SIZES)
def test_a_full_disk_is_named_with_what_was_needed_and_the_next_build_works(
    disk: Callable[..., Path], build: Callable[..., Ended], size: int
) -> None:
    home = disk(f"size={size}") / "home"
    line = error_of(build(home))
    assert f"{home}" in line
    assert ": no space left on device; " in line
    writer = SIZES[size] if SIZES[size] == "the build" else f"stage {SIZES[size]}"
    assert f"; {writer} had written " in line
    assert "MB are free; make room, or build elsewhere with ENGINEWRIGHT_HOME=<folder>" in line
    check_undamaged(home)
    disk("size=64m")
    again = build(home)
    assert again.code == 0, again.stderr
    check_undamaged(home)
    open_bundle(home / "bundles/latest")


def test_a_file_that_may_not_grow_is_named_too(build: Callable[..., Ended], tmp_path: Path) -> None:
    home = tmp_path / "home"
    line = error_of(build(home, max_file_bytes=100_000))
    assert line.startswith("error: fetch: ")
    assert "file too large; stage fetch had written " in line
    check_undamaged(home)
    assert build(home).code == 0


def test_a_read_only_home_is_named_and_one_that_has_everything_is_enough(
    disk: Callable[..., Path], build: Callable[..., Ended]
) -> None:
    home = disk("size=64m") / "home"
    disk("ro")
    for tracking in ("off", "default"):
        line = error_of(build(home, f"tracking={tracking}"))
        assert line.startswith(f"error: {home}")
        assert "cannot write there (read-only file system); make it writable, or build elsewhere with" in line
    disk("rw")
    assert build(home).code == 0
    disk("ro")
    again = build(home)
    assert again.code == 0, again.stderr
    assert again.stderr.count(": cached") == len(STAGES)
    line = error_of(build(home, "verify.num_prompts=2"))
    assert f"{home}/cache/verify" in line
    assert "(read-only file system); make it writable" in line
    params = SamplingParams(max_tokens=3)
    assert LLM(home / "bundles/latest").generate("hello", params)[0].completions[0].token_ids


def test_a_file_where_a_folder_belongs_is_named(build: Callable[..., Ended], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").write_text("not a folder")
    line = error_of(build(home))
    assert f"error: {home}/cache" in line
    assert "needs a folder there (" in line
    assert line.endswith("move away what is in its place")
    assert (home / "cache").read_text() == "not a folder"


def test_a_cache_of_another_version_is_built_over_and_told_of(build: Callable[..., Ended], tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert build(home).code == 0
    bundle = (home / "bundles/latest").resolve().name
    entries = {path.parent.parent.name: path.parent for path in home.glob("cache/*/*/artifact.json")}
    for stage, change in (("fetch", {"layout": 0}), ("convert", {"unknown_field": 1}), ("verify", {"files": None})):
        path = entries[stage] / "artifact.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    shutil.rmtree(entries["compile"])
    entries["compile"].write_text("an entry was one file")
    entries["bench"].joinpath("artifact.json").unlink()  # an older name for it
    (home / "cache/draft/0123").mkdir(parents=True)  # a stage that is no more
    (home / "cache/version.txt").write_text("0")
    again = build(home)
    assert again.code == 0, again.stderr
    told = " ".join(again.stderr.split())
    assert "cached fetch is damaged (artifact.json: layout 0 of another version, this one reads 1)" in told
    for stage in ("convert", "compile", "verify"):
        assert f"cached {stage} is damaged (artifact.json: " in told
    assert (home / "bundles/latest").resolve().name == bundle
    check_undamaged(home)
    assert build(home).stderr.count(": cached") == len(STAGES)
