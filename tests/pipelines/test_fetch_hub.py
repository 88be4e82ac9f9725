"""A model of the Hub is fetched at one commit, checked byte for byte, and refused in one line; a local fake answers."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipelines.config import ModelConfig
from pipelines.loading import load_config
from pipelines.sources.hub import pinned, plan_download
from runtime.errors import EnginewrightError
from tests.pipelines.fake_hub import FakeHub, Repository, serve, use
from tests.pipelines.running_stages import run_fetch
from tests.pipelines.test_cli import command
from tests.pipelines.test_fetch import EMPTY_GGUF
from tests.pipelines.tiny_models import make_hf_folder

WEIGHTS = bytes(range(256)) * 400
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "README.md": b"# hello",
    "onnx/model.onnx": b"x" * 50,
    ".gitattributes": b"*",
}
TAKEN = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty Hub, an empty cache of downloads, and no token."""
    with serve() as hub:
        use(hub, tmp_path, monkeypatch)
        yield hub


@pytest.fixture
def repository(hub: FakeHub) -> Repository:
    """org/model with one commit under main."""
    hub.repositories["org/model"] = Repository()
    hub.repositories["org/model"].commit(FILES)
    return hub.repositories["org/model"]


def source_json(folder: Path) -> dict:
    return json.loads((folder / "source.json").read_text())


def fetched(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "source").iterdir()}


def refused(source: str, folder: Path, match: str, **pins: str) -> str:
    """Fetching fails with one line that matches, and no file is left."""
    with pytest.raises(EnginewrightError, match=match) as caught:
        run_fetch(source, folder, **pins)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None or "hf_secret" not in str(caught.value.__cause__)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    return str(caught.value)


def test_a_repository_gives_what_can_be_converted_at_a_commit(hub, repository, tmp_path):
    run_fetch("hub:org/model", tmp_path / "out")
    assert fetched(tmp_path / "out") == {name: FILES[name] for name in TAKEN}
    description = source_json(tmp_path / "out")
    assert (description["kind"], description["uri"]) == ("hf", "hub:org/model")
    assert description["revision"] == repository.refs["main"]
    assert not hub.asked("GET", "README.md")
    assert not hub.asked("GET", "onnx")


def test_the_commit_that_a_branch_named_at_the_start_is_what_is_fetched(hub, repository, tmp_path):
    first = repository.refs["main"]
    model = pinned(ModelConfig("tiny", "hub:org/model@main"))
    second = repository.commit(FILES | {"model.safetensors": WEIGHTS[::-1]})
    run_fetch(model.source, tmp_path / "old")
    run_fetch("hub:org/model@main", tmp_path / "new")
    run_fetch(f"hub:org/model@{first}", tmp_path / "pinned")
    assert source_json(tmp_path / "old")["revision"] == first
    assert source_json(tmp_path / "new")["revision"] == second
    assert fetched(tmp_path / "old")["model.safetensors"] == WEIGHTS
    assert fetched(tmp_path / "new")["model.safetensors"] == WEIGHTS[::-1]
    # Whoever names the branch and whoever names its commit get the same artifact.
    assert (tmp_path / "pinned/source.json").read_bytes() == (tmp_path / "old/source.json").read_bytes()


def test_a_pinned_model_asks_the_hub_nothing_before_its_fetch(hub, repository):
    model = ModelConfig("tiny", f"hub:org/model@{repository.refs['main']}")
    assert pinned(model) == model
    assert hub.requests == []


def test_a_plan_counts_bytes_and_downloads_none(hub, repository, tmp_path):
    plan = plan_download("hub:org/model")
    size = sum(len(FILES[name]) for name in TAKEN)
    assert (plan.commit, plan.total_bytes, plan.download_bytes) == (repository.refs["main"], size, size)
    assert {file.path: file.size for file in plan.files} == {name: len(FILES[name]) for name in TAKEN}
    assert not hub.asked("GET", "/resolve/")
    run_fetch("hub:org/model", tmp_path / "out")
    assert plan_download("hub:org/model").download_bytes == 0


def test_what_is_cached_is_not_downloaded_again(hub, repository, tmp_path):
    run_fetch("hub:org/model", tmp_path / "first")
    hub.requests.clear()
    repository.commit(FILES | {"config.json": b'{"b": 2}'})
    run_fetch("hub:org/model", tmp_path / "second")
    assert fetched(tmp_path / "second")["config.json"] == b'{"b": 2}'
    assert not hub.asked("GET", "/cdn/")


def test_a_broken_transfer_is_resumed_where_it_broke(hub, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.broken["model.safetensors"] = 4096
    run_fetch("hub:org/model", tmp_path / "out")
    assert fetched(tmp_path / "out")["model.safetensors"] == WEIGHTS
    transfers = hub.asked("GET", "/cdn/")
    assert len(transfers) == 2
    start = int(transfers[1].rpartition("bytes=")[2].rstrip("-"))
    assert 0 < start <= 4096


def test_a_build_that_ended_midway_goes_on_with_the_files_that_are_missing(hub, repository, tmp_path):
    shards = {f"model-0000{index}-of-00002.safetensors": WEIGHTS + bytes([index]) for index in (1, 2)}
    repository.commit({"config.json": b"{}", **shards})
    hub.damaged.add("model-00002-of-00002.safetensors")
    refused("hub:org/model", tmp_path / "first", "checksum of model-00002")
    hub.damaged.clear()
    hub.requests.clear()
    run_fetch("hub:org/model", tmp_path / "second")
    assert len(hub.asked("GET", "/cdn/")) == 1
    assert fetched(tmp_path / "second") == {"config.json": b"{}", **shards}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_describes_is_refused_and_removed(hub, repository, tmp_path, name):
    hub.damaged.add(name)
    assert name in refused("hub:org/model", tmp_path / "out", f"the checksum of {name} is .* the Hub says .* removed")
    assert not list((tmp_path / "hf-cache").rglob(name))


def test_offline_the_last_seen_commit_is_used_and_nothing_else(hub, repository, tmp_path, monkeypatch):
    run_fetch("hub:org/model", tmp_path / "online")
    repository.commit({"config.json": b"{}", "model.safetensors": b"new"})
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run_fetch("hub:org/model", tmp_path / "offline")
    assert (tmp_path / "offline/source.json").read_bytes() == (tmp_path / "online/source.json").read_bytes()
    refused("hub:org/other", tmp_path / "other", "HF_HUB_OFFLINE is set and it was never downloaded; unset")
    refused("hub:org/model@v2", tmp_path / "tag", "HF_HUB_OFFLINE is set and it was never downloaded")
    refused("hub:org/model@" + "1" * 40, tmp_path / "commit", "HF_HUB_OFFLINE is set and it was never downloaded")
    (tmp_path / "hf-cache/models--org--model/snapshots" / repository_commit(tmp_path) / "tokenizer.json").unlink()
    refused("hub:org/model", tmp_path / "partial", "HF_HUB_OFFLINE is set and tokenizer.json of it was never")
    assert hub.requests == []


def repository_commit(tmp_path: Path) -> str:
    return source_json(tmp_path / "online")["revision"]


def test_an_offline_copy_that_was_changed_is_refused(hub, repository, tmp_path, monkeypatch):
    run_fetch("hub:org/model", tmp_path / "online")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "hf-cache/models--org--model/snapshots" / repository_commit(tmp_path)
    (snapshot / "model.safetensors").resolve().write_bytes(b"other")
    refused("hub:org/model", tmp_path / "offline", "the checksum of model.safetensors is [0-9a-f]{64} but the Hub says")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, r"weights are pickles \(pytorch_model\.bin\)"),
        ({**FILES, "modeling_x.py": b""}, r"holds remote code \(modeling_x\.py\), which is never run"),
        ({**FILES, "config.json": b'{"auto_map": {"AutoModel": "m.M"}}'}, r"auto_map asks for remote code \(m\.M\)"),
        ({"README.md": b"x"}, "has no config.json"),
        ({"a.Q4_0.gguf": EMPTY_GGUF, "a.Q8_0.gguf": EMPTY_GGUF}, r"has 2 GGUF files; choose one: #a\.Q4_0\.gguf, #a"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_its_weights_are_downloaded(hub, repository, tmp_path, files, match):
    repository.commit(files)
    assert "hub:org/model@" in refused("hub:org/model", tmp_path / "out", match)
    assert not hub.asked("GET", "/cdn/")


def test_a_gguf_file_is_named_by_its_path_in_the_repository(hub, repository, tmp_path):
    other = EMPTY_GGUF[:-1] + b"\0"
    repository.commit({**FILES, "q4/a.Q4_0.gguf": other, "a.Q8_0.gguf": EMPTY_GGUF + b"\0" * 8})
    digest = hashlib.sha256(other).hexdigest()
    run_fetch("hub:org/model#q4/a.Q4_0.gguf", tmp_path / "out", sha256=digest, file_sha256=digest)
    description = source_json(tmp_path / "out")
    assert (description["kind"], description["uri"]) == ("gguf", "hub:org/model#q4/a.Q4_0.gguf")
    assert fetched(tmp_path / "out") == {"a.Q4_0.gguf": other}
    refused("hub:org/model#b.gguf", tmp_path / "none", "has no such file; its GGUF files: a.Q8_0.gguf, q4/a.Q4_0.gguf")
    refused("hub:org/model#a.Q8_0.gguf", tmp_path / "pin", "but model.sha256 says 000", sha256="0" * 64)


def test_the_only_gguf_file_of_a_repository_without_safetensors_needs_no_name(hub, repository, tmp_path):
    repository.commit({"README.md": b"x", "config.json": b"{}", "only.gguf": EMPTY_GGUF})
    run_fetch("hub:org/model", tmp_path / "out")
    assert fetched(tmp_path / "out") == {"only.gguf": EMPTY_GGUF}


def test_weights_in_another_layout_beside_transformers_own_are_left(hub, repository, tmp_path):
    repository.commit({**FILES, "consolidated.safetensors": b"the same again"})
    run_fetch("hub:org/model", tmp_path / "out")
    assert sorted(fetched(tmp_path / "out")) == TAKEN


def test_pins_of_a_repository_hold_its_content(hub, repository, tmp_path):
    refused(
        "hub:org/model", tmp_path / "out", "content digest is [0-9a-f]{64} but model.sha256 says 0", sha256="0" * 64
    )


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (
            "hub:org/other",
            r"no such repository, or it is private, and no folder org/other is here; .*\(there is none: set HF_TOKEN\)",
        ),
        ("hub:org/model@v9", r"has no revision 'v9'; see http://127\.0\.0\.1:\d+/org/model/refs"),
        ("hub:org", r"'hub:org' is not hub:<org>/<name>\[@<revision>\]\[#<file>\.gguf\]"),
        ("hub:org/model#weights.bin", "is not hub:<org>/<name>"),
    ],
)
def test_what_is_not_on_the_hub_is_named(hub, repository, tmp_path, source, match):
    refused(source, tmp_path / "out", match)


def test_gated_and_private_models_say_what_to_do_and_show_no_token(hub, repository, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "enginewright")
    repository.token, repository.gated = "hf_secret_right", True
    refused(
        "hub:org/model", tmp_path / "none", r"is gated; accept its terms at http://.*\(there is none: set HF_TOKEN\)"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret_wrong")
    refused("hub:org/model", tmp_path / "wrong", r"is gated; .* your token \(the one in HF_TOKEN\)")
    repository.gated = False
    refused("hub:org/model", tmp_path / "invalid", r"refuses the token \(HTTP 401, the one in HF_TOKEN\)")
    monkeypatch.setenv("HF_TOKEN", "hf_secret_right")
    run_fetch("hub:org/model", tmp_path / "right")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]
    assert "hf_secret" not in caplog.text


def test_a_hub_that_fails_or_is_not_there_is_one_line_with_the_way_out(hub, repository, tmp_path, monkeypatch):
    hub.failing = 503
    refused(
        "hub:org/model", tmp_path / "failing", r"the Hub cannot be reached \(HfHubHTTPError: .*503.*HF_HUB_OFFLINE=1"
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:password@127.0.0.1:9")
    line = refused("hub:org/model", tmp_path / "gone", "the Hub cannot be reached .*; check the network")
    assert "password" not in line


def test_a_bare_name_is_the_hubs_unless_something_here_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(["model=org/Some-Model"]).model.source == "hub:org/Some-Model"
    chosen = load_config(["model=org/Some-Model@v1#a.Q4_K_M.gguf"]).model
    assert (chosen.name, chosen.source) == ("a", "hub:org/Some-Model@v1#a.Q4_K_M.gguf")
    assert load_config(["model=hub:org/Some-Model@v1"]).model.name == "some-model"
    (tmp_path / "org/Some-Model").mkdir(parents=True)
    assert load_config(["model=org/Some-Model"]).model.source == str(tmp_path / "org/Some-Model")
    assert load_config(["model=hub:org/Some-Model"]).model.source == "hub:org/Some-Model"
    for missing in ("./org/x", "org/x/y", "org/x.gguf"):
        with pytest.raises(EnginewrightError, match="no such file or folder"):
            load_config([f"model={missing}"])


def test_a_model_of_the_hub_is_built_by_the_command_line_and_its_token_is_nowhere(hub, tmp_path, monkeypatch):
    model = make_hf_folder(tmp_path / "tiny")
    hub.repositories["org/tiny"] = Repository(token="hf_secret_right")
    commit = hub.repositories["org/tiny"].commit({path.name: path.read_bytes() for path in model.iterdir()})
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": tmp_path / "hf", "HF_TOKEN": "hf_secret_right"}
    for name, value in {**environment, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, str(value))
    home = tmp_path / "home"
    home.mkdir()
    for _ in range(2):
        done = command(home, "model=org/tiny", "target=[cpu]", "verify=off", "bench=off", real=True)
        assert done.returncode == 0, done.stderr
    assert "fetch: cached" in done.stderr
    source = json.loads((home / "bundles/latest/manifest.json").read_text())["provenance"]["source"]
    assert (source["uri"], source["revision"]) == ("hub:org/tiny", commit)
    assert not [path for path in home.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert "hf_secret" not in done.stdout + done.stderr
