"""An archive is the bundle and nothing but it: the same bytes each time, and no stranger's file gets further."""

import io
import json
import os
import tarfile

import pytest
import zstandard

from runtime.errors import EnginewrightError
from runtime.formats import archive as module
from runtime.formats.archive import archive_bundle, extract_bundle
from runtime.formats.bundle import open_bundle
from runtime.formats.manifest import MANIFEST_FILE
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from tests.runtime.test_bundle import make_bundle
from tests.runtime.test_cli import command, refused


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    make_bundle(folder)
    return folder


@pytest.fixture
def packed(bundle, tmp_path):
    return archive_bundle(bundle, tmp_path / "tiny.tar.zst")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plain(name, data=b"x"):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def make_archive(path, bundle, *extra, first=None):
    """What a stranger may send: a bundle's manifest, then whatever he likes."""
    manifest = first or plain(MANIFEST_FILE, (bundle / MANIFEST_FILE).read_bytes())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in (manifest, *extra):
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(zstandard.ZstdCompressor().compress(buffer.getvalue()))
    return path


def refuses(path, match):
    """It is refused with one line that names it, and nothing is left or written elsewhere."""
    before = sorted(path.parent.parent.rglob("*"))
    with pytest.raises(EnginewrightError, match=match) as caught:
        extract_bundle(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert sorted(path.parent.parent.rglob("*")) == before


def test_an_archive_comes_back_as_the_same_bundle(bundle, packed):
    folder = extract_bundle(packed)
    assert folder == packed.with_name("tiny")
    assert contents(folder) == contents(bundle)
    assert open_bundle(folder).bundle_id == open_bundle(bundle).bundle_id


def test_the_same_bundle_gives_the_same_bytes_whatever_its_times_and_owners(bundle, packed, tmp_path):
    copy = extract_bundle(packed)
    for number, path in enumerate(sorted(copy.rglob("*"))):
        os.chmod(path, 0o700)
        os.utime(path, (number, number))
    assert archive_bundle(copy, tmp_path / "again.tar.zst").read_bytes() == packed.read_bytes()


def test_loading_takes_an_archive_and_extracts_it_once(bundle, packed):
    params = SamplingParams(max_tokens=6)
    expected = LLM(bundle).generate("hello", params)[0].text
    assert LLM(packed).generate("hello", params)[0].text == expected
    kept = packed.with_name("tiny")
    inode = (kept / MANIFEST_FILE).stat().st_ino
    assert LLM(packed).generate("hello", params)[0].text == expected
    assert (kept / MANIFEST_FILE).stat().st_ino == inode


def test_the_command_line_archives_and_extracts(bundle, tmp_path):
    code, stdout, _ = command("archive", bundle, "--out", tmp_path / "b.tar.zst")
    assert (code, stdout) == (0, f"{tmp_path}/b.tar.zst\n")
    code, stdout, _ = command("extract", tmp_path / "b.tar.zst", "--out", tmp_path / "there")
    assert (code, stdout) == (0, f"{tmp_path}/there\n")
    assert contents(tmp_path / "there") == contents(bundle)
    assert "cannot be written" in refused("archive", bundle, "--out", "/nowhere/b.tar.zst")


def test_a_folder_that_is_something_else_is_not_touched(packed):
    folder = packed.with_name("tiny")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(EnginewrightError, match=r"there already, and not the bundle of .*; move it, or extract with"):
        extract_bundle(packed)
    assert contents(folder) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    "name",
    ["../evil", "config.json/../../evil", "/etc/evil", "./config.json", "a//b", "a\\b", "attestations/../../evil"],
)
def test_a_name_that_leads_elsewhere_is_refused(bundle, tmp_path, name):
    refuses(make_archive(tmp_path / "x.tar.zst", bundle, plain(name)), "leads out of the bundle; get the archive again")


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a symbolic link"), (tarfile.LNKTYPE, "a hard link"), (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"), (tarfile.FIFOTYPE, "a pipe"), (tarfile.DIRTYPE, "a folder"),
        (tarfile.XHDTYPE, "a header of another kind"),
    ],
)  # fmt: skip
def test_what_is_no_plain_file_is_refused(bundle, tmp_path, kind, word):
    refuses(make_archive(tmp_path / "x.tar.zst", bundle, special("config.json", kind, "/etc/passwd")), f"is {word}")


def test_a_name_that_comes_twice_is_refused(bundle, tmp_path):
    config = plain("config.json", (bundle / "config.json").read_bytes())
    refuses(make_archive(tmp_path / "x.tar.zst", bundle, config, config), "'config.json' comes twice")
    refuses(make_archive(tmp_path / "x.tar.zst", bundle, plain(MANIFEST_FILE)), "'manifest.json' comes twice")


def test_files_that_the_manifest_does_not_bound_are_refused(bundle, tmp_path):
    size = (bundle / "config.json").stat().st_size
    refuses(make_archive(tmp_path / "x.tar.zst", bundle, plain("more.bin")), "'more.bin' is not in the manifest")
    refuses(
        make_archive(tmp_path / "x.tar.zst", bundle, plain("config.json", b"y" * (size + 1))),
        f"'config.json' has {size + 1} bytes, the manifest says {size}",
    )


def test_a_changed_or_missing_file_is_refused_and_nothing_stays(bundle, tmp_path):
    size = (bundle / "config.json").stat().st_size
    refused_archive = make_archive(tmp_path / "x.tar.zst", bundle, plain("config.json", b"y" * size))
    with pytest.raises(EnginewrightError, match=r"missing from the bundle|sha256"):
        extract_bundle(refused_archive)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.zst"]


def test_bombs_are_refused_by_ratio_count_sizes_and_room(bundle, tmp_path, monkeypatch):
    path = tmp_path / "x.tar.zst"
    zeros = plain("attestations/zeros", bytes(32 * 2**20))
    refuses(make_archive(path, bundle, zeros), "decompresses to more than 200 times its size")
    monkeypatch.setattr(module, "MAX_FILES", 20)
    many = [plain(f"attestations/{number}") for number in range(21)]
    refuses(make_archive(path, bundle, *many), "more than 20 files")
    monkeypatch.setattr(module, "MAX_ATTESTATION_BYTES", 1000)
    refuses(
        make_archive(path, bundle, plain("attestations/big", os.urandom(1001))), "attestations of more than 1000 bytes"
    )
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 100)
    refuses(make_archive(path, bundle), "a manifest of .* bytes, more than the 100 of any")
    monkeypatch.undo()
    fields = json.loads((bundle / MANIFEST_FILE).read_text())
    fields["files"]["weights.safetensors"]["size_bytes"] = 2**60
    huge = plain(MANIFEST_FILE, json.dumps(fields).encode())
    refuses(make_archive(path, bundle, first=huge), "its files need 1152921504.* bytes, .* free; make room")


def test_an_archive_that_is_cut_off_damaged_or_none_is_refused(bundle, packed, tmp_path):
    data = packed.read_bytes()
    cut = tmp_path / "cut.tar.zst"
    for length in (0, 10, len(data) // 2, len(data) - 200):
        cut.write_bytes(data[:length])
        refuses(cut, "ends early|no zstd data")
    cut.write_bytes(data[: len(data) // 2] + b"\xff" * 64 + data[len(data) // 2 + 64 :])
    with pytest.raises(EnginewrightError, match=r"no zstd data|sha256|not a tar file|ends early"):
        extract_bundle(cut)
    cut.write_bytes(b"not compressed")
    refuses(cut, "no zstd data")
    refuses(
        make_archive(cut, bundle, first=plain("config.json")), r"starts with 'config.json', a bundle's archive with"
    )
    with pytest.raises(EnginewrightError, match=r"nowhere\.tar\.zst: cannot be read"):
        open_bundle(tmp_path / "nowhere.tar.zst")
