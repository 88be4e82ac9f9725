"""Every local form takes a bundle once, goes on after a kill, keeps what it has, and gives the same bytes back."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

import pipelines.bundles
from pipelines.enginewright import main
from pipelines.publish.publication import Publication, read_publication
from pipelines.publish.pulling import pull
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from tests.pipelines.publish.conftest import GOLDEN
from tests.pipelines.publish.places import contents, place
from tests.runtime.golden import make

FORMS = ["{}/plain", "file://{}/url", "memory://{}/memory", "{}/one.tar.zst", "oci:{}/layout", "triton:{}/models"]
IN_PARTS = [form for form in FORMS if not form.endswith(".tar.zst")]  # an archive is one file, renamed when whole


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param).format(tmp_path)


each_form = pytest.mark.parametrize("location", FORMS, indirect=True)
each_form_in_parts = pytest.mark.parametrize("location", IN_PARTS, indirect=True)


class Killed(BaseException):
    """What no handler of ours catches, as a kill."""


def break_after(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[str]:
    """Let so many files be written to any place, then raise; returns the list of what is written, as it grows."""
    sent: list[str] = []

    def counted(write):  # type: ignore[no-untyped-def]
        def wrapped(*arguments: object, **options: object) -> object:
            if len(sent) == number:
                raise error
            sent.append(str(arguments[-1]))
            return write(*arguments, **options)

        return wrapped

    copy = counted(pipelines.bundles.copy_file)
    monkeypatch.setattr("pipelines.publish.oci_layout.copy_file", copy)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file",
                        counted(fsspec.get_filesystem_class("file").put_file))  # fmt: skip
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file",
                        counted(fsspec.get_filesystem_class("memory").put_file), raising=False)  # fmt: skip
    return sent


@each_form
def test_a_bundle_comes_back_byte_for_byte_and_generates(location: str, golden: Publication, tmp_path: Path) -> None:
    outcome = place(location).publish(golden, replace=False)
    assert set(outcome.sent) >= {"manifest.json"} or "1/bundle/manifest.json" in str(outcome.sent)
    bundle = pull(place(location), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)
    assert bundle.bundle_id == golden.bundle.bundle_id
    assert make.generate(tmp_path / "back") == make.generate(GOLDEN)


@each_form
def test_a_second_time_nothing_is_sent(location: str, golden: Publication, tmp_path: Path) -> None:
    place(location).publish(golden, replace=False)
    before = contents(tmp_path)
    outcome = place(location).publish(golden, replace=False)
    assert (list(outcome.sent), outcome.sent_bytes, list(outcome.removed)) == ([], 0, [])
    assert "has this bundle already; nothing was sent" in outcome.describe(location)
    assert contents(tmp_path) == before


@each_form
def test_another_bundle_gives_way_only_when_that_is_asked_for(
    location: str, golden: Publication, other: Publication, tmp_path: Path
) -> None:
    place(location).publish(other, replace=False)
    with pytest.raises(EnginewrightError, match=r"has another bundle \(.*\); publish with --replace") as caught:
        place(location).publish(golden, replace=False)
    assert "\n" not in str(caught.value)
    assert pull(place(location), tmp_path / "kept").bundle_id == other.bundle.bundle_id
    place(location).publish(golden, replace=True)
    pull(place(location), tmp_path / "new")
    assert contents(tmp_path / "new") == contents(GOLDEN)


@each_form_in_parts
@pytest.mark.parametrize("number", [0, 3, 8])
def test_a_killed_publication_is_not_whole_and_goes_on(
    location: str, number: int, golden: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        done = break_after(patch, number, Killed())
        with pytest.raises(Killed):
            place(location).publish(golden, replace=False)
    assert len(done) == number
    with pytest.raises(EnginewrightError):
        pull(place(location), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".none*"))
    with monkeypatch.context() as patch:
        rest = break_after(patch, -1, Killed())
        place(location).publish(golden, replace=False)
    assert not set(done) & set(rest)  # what arrived whole is not sent again
    pull(place(location), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


@each_form_in_parts
def test_a_killed_replacement_is_not_whole_and_goes_on(
    location: str, golden: Publication, other: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(location).publish(other, replace=False)
    for number in (0, 2):
        with monkeypatch.context() as patch:
            break_after(patch, number, Killed())
            with pytest.raises(Killed):
                place(location).publish(golden, replace=True)
        with pytest.raises(EnginewrightError):
            pull(place(location), tmp_path / "none")
    place(location).publish(golden, replace=False)
    pull(place(location), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


@pytest.mark.parametrize("location", ["{}/plain", "triton:{}/models"], indirect=True)
def test_a_manifest_that_was_cut_off_is_not_whole_and_is_sent_again(
    location: str, golden: Publication, tmp_path: Path
) -> None:
    place(location).publish(golden, replace=False)
    (manifest,) = tmp_path.rglob("manifest.json")
    with manifest.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(EnginewrightError, match="not a bundle manifest"):
        pull(place(location), tmp_path / "none")
    assert [name.rpartition("/")[2] for name in place(location).publish(golden, replace=False).sent] == [
        "manifest.json"
    ]
    pull(place(location), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


@each_form_in_parts
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(
    location: str, golden: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there")
    with monkeypatch.context() as patch:
        break_after(patch, 5, full)
        with pytest.raises(EnginewrightError, match=r"no space left on device \(/there\); make room and") as caught:
            place(location).publish(golden, replace=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(EnginewrightError):
        pull(place(location), tmp_path / "none")


def test_a_full_disk_leaves_no_archive(golden: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("runtime.formats.archive._add", full)
    with pytest.raises(EnginewrightError, match=r"No space left on device"):
        place(f"{tmp_path}/one.tar.zst").publish(golden, replace=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", [form for form in FORMS if not form.startswith("memory:")], indirect=True)
def test_a_place_that_may_not_be_written_is_one_line(location: str, golden: Publication, tmp_path: Path) -> None:
    blocked = location.replace(str(tmp_path), "/proc/self")  # where even root makes nothing
    with pytest.raises(EnginewrightError, match=r"no such file|permission|not permitted|cannot be") as caught:
        place(blocked).publish(golden, replace=False)
    assert "\n" not in str(caught.value)
    assert "/proc/self" in str(caught.value)


@pytest.mark.parametrize("location", ["{}/plain", "oci:{}/layout", "triton:{}/models"], indirect=True)
def test_a_users_own_files_are_never_touched(location: str, golden: Publication, tmp_path: Path) -> None:
    folder = tmp_path / location.rpartition("/")[2] / (golden.name if location.startswith("triton:") else "")
    folder.mkdir(parents=True)
    for name in ("mine.txt", "attestations/mine.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
        for replace in (False, True):
            with pytest.raises(EnginewrightError, match=r"has files that are .*; empty it, or name another"):
                place(location).publish(golden, replace)
        assert contents(folder) == {name: b"mine"}
        (folder / name).unlink()


@each_form
def test_new_attestations_of_the_same_bundle_are_sent_alone(location: str, golden: Publication, tmp_path: Path) -> None:
    place(location).publish(golden, replace=False)
    signed = tmp_path / "signed"
    shutil.copytree(GOLDEN, signed)
    (signed / "attestations/signature.json").write_text("{}")
    (signed / "attestations/bench/samples.jsonl").unlink()
    outcome = place(location).publish(read_publication(signed), replace=False)
    if not location.endswith(".tar.zst"):
        assert [name.rpartition("/")[2] for name in outcome.sent if name != "index.json"] == ["signature.json"]
    pull(place(location), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(signed)


@pytest.mark.parametrize("location", ["{}/plain", "oci:{}/layout", "triton:{}/models"], indirect=True)
def test_one_flipped_byte_is_refused_by_pull_and_mended_by_publish(
    location: str, golden: Publication, tmp_path: Path
) -> None:
    place(location).publish(golden, replace=False)
    folder = tmp_path / location.rpartition("/")[2]
    weights = next(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size == 174400)
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(EnginewrightError, match=r"weights\.safetensors"):
        pull(place(location), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert len(place(location).publish(golden, replace=False).sent) == 1
    pull(place(location), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


def test_what_is_no_place_is_refused_by_name() -> None:
    for location in ("", "oci:", "hub:", "tritn:models", "s3://bucket/one.tar.zst"):
        with pytest.raises(EnginewrightError, match=r"is no place for a bundle; give a folder, <file>\.tar\.zst, oci:"):
            place(location)


@pytest.mark.parametrize(
    ("location", "words"),
    [("nothing://x/y", "Protocol not known"), ("s3://bucket/x", "needs a library|cannot be used")],
)
def test_a_url_that_no_library_opens_is_one_line(location: str, words: str, golden: Publication) -> None:
    with pytest.raises(EnginewrightError, match=words) as caught:
        place(location).publish(golden, replace=False)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(location)


def test_the_command_line_publishes_to_many_places_and_pulls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [form.format(tmp_path) for form in FORMS if not form.startswith("memory:")]
    main(["publish", str(GOLDEN), *places])
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0].removesuffix(":") for line in printed] == places
    main(["publish", str(GOLDEN), *places])
    assert capsys.readouterr().out.count("nothing was sent") == len(places)
    for number, location in enumerate(places):
        main(["pull", location, str(tmp_path / f"back-{number}")])
        assert open_bundle(tmp_path / f"back-{number}")


def test_a_place_that_fails_does_not_keep_the_others_from_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    with pytest.raises(SystemExit, match=r"^error: .*mine: has files that are not of this bundle"):
        main(["publish", str(GOLDEN), str(tmp_path / "mine"), str(tmp_path / "good")])
    assert open_bundle(tmp_path / "good")


def test_a_folder_that_is_there_is_not_pulled_into(golden: Publication, tmp_path: Path) -> None:
    place(f"{tmp_path}/there").publish(golden, replace=False)
    with pytest.raises(EnginewrightError, match="exists already; name a new folder"):
        pull(place(f"{tmp_path}/there"), tmp_path / "there")
    with pytest.raises(EnginewrightError, match=r"no bundle there \(nothing is there\)"):
        pull(place(f"{tmp_path}/nowhere"), tmp_path / "out")
