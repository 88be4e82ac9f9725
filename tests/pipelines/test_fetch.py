"""Fetching copies exactly the files that a conversion needs, says what they are, and leaves nothing when it refuses."""

import hashlib
import json
import os
import shutil
import struct

import pytest

from pipelines.sources.fetched import copy_file
from runtime.errors import EnginewrightError
from tests.pipelines.running_stages import run_fetch

EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)  # version 3, no tensors, no metadata


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "merges.txt"):
        (folder / name).write_text("{}" + name)
    (folder / "config.json").write_text("{}")
    return folder


def source_json(folder):
    return json.loads((folder / "source.json").read_text())


def refused(source, tmp_path, match, **pins):
    """Fetching fails with one line that matches, and no file is left."""
    with pytest.raises(EnginewrightError, match=match) as caught:
        run_fetch(source, tmp_path / "out", **pins)
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_folder_gives_what_can_be_converted_and_nothing_else(model_folder, tmp_path):
    for name in ("pytorch_model.bin", "README.md", "LICENSE", ".hidden.json", "model.gguf"):
        (model_folder / name).write_text(name)
    (model_folder / "original").mkdir()
    (model_folder / "original" / "params.json").write_text("{}")
    output = run_fetch(model_folder, tmp_path / "out")
    taken = ["chat_template.jinja", "config.json", "merges.txt", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in (tmp_path / "out" / "source").iterdir()) == taken
    assert [entry["path"] for entry in source_json(tmp_path / "out")["files"]] == taken
    assert output.metrics["source_files"] == 5


def test_source_json_names_content_and_no_path_of_this_machine(model_folder, tmp_path):
    run_fetch(model_folder, tmp_path / "out")
    fields = source_json(tmp_path / "out")
    assert (fields["kind"], fields["uri"]) == ("hf", "my-model")
    assert str(tmp_path) not in (tmp_path / "out" / "source.json").read_text()
    for entry in fields["files"]:
        content = (model_folder / entry["path"]).read_bytes()
        assert entry["size"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    run_fetch(model_folder, tmp_path / "pinned", sha256=fields["revision"].removeprefix("sha256:"))
    assert (tmp_path / "pinned" / "source.json").read_bytes() == (tmp_path / "out" / "source.json").read_bytes()


def test_an_artifact_does_not_change_with_its_source(model_folder, tmp_path):
    blob = tmp_path / "blob"
    shutil.move(model_folder / "model.safetensors", blob)
    (model_folder / "model.safetensors").symlink_to(blob)
    run_fetch(model_folder, tmp_path / "out")
    blob.write_text("changed in place")
    copy = tmp_path / "out" / "source" / "model.safetensors"
    assert copy.read_text() == "{}model.safetensors"
    assert not copy.is_symlink()


def test_copying_does_without_help_from_the_kernel(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"config.json": None}, "no config.json; give a Hugging Face model folder"),
        ({"config.json": None, "m.gguf": "GGUF"}, r"no config.json; give the file .*m\.gguf"),
        ({"model.safetensors": None, "pytorch_model.bin": ""}, r"pickles \(pytorch_model\.bin\).*save_pretrained"),
        ({"model.safetensors": None, "consolidated.00.pth": ""}, r"pickles \(consolidated\.00\.pth\)"),
        ({"model.safetensors": None}, r"no \*\.safetensors"),
        ({"modeling_custom.py": ""}, r"remote code \(modeling_custom\.py\)"),
        ({"config.json": '{"auto_map": {"AutoModelForCausalLM": "modeling.M"}}'}, r"auto_map.*modeling\.M"),
        ({"config.json": "{"}, "cannot be read as JSON"),
    ],
)
def test_a_folder_that_cannot_be_converted_is_refused(model_folder, tmp_path, changes, match):
    for name, content in changes.items():
        if content is None:
            (model_folder / name).unlink()
        else:
            (model_folder / name).write_text(content)
    refused(model_folder, tmp_path, match)


def test_pins_are_checked(model_folder, tmp_path):
    refused(
        model_folder, tmp_path, f"content digest is [0-9a-f]{{64}} but model.sha256 says {'0' * 64}", sha256="0" * 64
    )
    shutil.rmtree(tmp_path / "out")
    refused(model_folder, tmp_path, "pins a file inside a wheel", file_sha256="0" * 64)
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(EMPTY_GGUF)
    for pin in ("sha256", "file_sha256"):
        shutil.rmtree(tmp_path / "out")
        refused(gguf, tmp_path, f"m.gguf: sha256 is [0-9a-f]{{64}} but model.{pin} says {'1' * 64}", **{pin: "1" * 64})


def test_a_gguf_file_is_copied_and_named(tmp_path):
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(EMPTY_GGUF)
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    run_fetch(gguf, tmp_path / "out", sha256=digest.upper())
    assert source_json(tmp_path / "out") == {
        "kind": "gguf",
        "uri": "m.gguf",
        "revision": f"sha256:{digest}",
        "files": [{"path": "m.gguf", "size": len(EMPTY_GGUF), "sha256": digest}],
    }


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("/nowhere/at-all", "does not exist"),
        ("hub:org", "'hub:org' is not hub:<org>/<name>"),
    ],
)
def test_a_source_that_is_not_there_is_refused(tmp_path, source, match):
    refused(source, tmp_path, match)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.bin").write_text("")
    refused(tmp_path / "model.bin", tmp_path, "not a model")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "page.gguf").write_text("<html>")
    refused(tmp_path / "page.gguf", tmp_path, "starts with b'<htm' instead of b'GGUF'")
