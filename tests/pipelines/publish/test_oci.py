"""A bundle is the same artifact wherever it goes: in a folder, and in a registry that wants a login."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.publish.oci_image import as_bytes, layer_type, layers_of
from pipelines.publish.publication import Publication
from pipelines.publish.pulling import pull
from runtime.errors import EnginewrightError
from tests.pipelines.publish.conftest import GOLDEN
from tests.pipelines.publish.fake_registry import CREDENTIALS, FakeRegistry, serve
from tests.pipelines.publish.places import contents, place


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    """One that this machine's docker is logged in to."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    with serve() as registry:
        (tmp_path / "user/.docker").mkdir(parents=True)
        logins = {"auths": {registry.address: {"auth": CREDENTIALS}}}
        (tmp_path / "user/.docker/config.json").write_text(json.dumps(logins))
        yield registry


def tag(registry: FakeRegistry) -> str:
    return f"oci://{registry.address}/org/model:v1"


def test_the_layout_is_what_the_specifications_say_and_the_same_each_time(golden: Publication, tmp_path: Path) -> None:
    for name in ("a", "b"):
        place(f"oci:{tmp_path}/{name}").publish(golden, replace=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert json.loads((tmp_path / "a/oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((tmp_path / "a/index.json").read_bytes())["manifests"]
    manifest = json.loads((tmp_path / "a/blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_bytes())
    assert entry["mediaType"] == manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert entry["artifactType"] == manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    config_entry = manifest["config"]
    assert config_entry["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    data = (tmp_path / "a/blobs/sha256" / config_entry["digest"].removeprefix("sha256:")).read_bytes()
    assert len(data) == config_entry["size"]
    config = json.loads(data)
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["config"]["precision"] == "float32"
    names = [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]]
    assert sorted(names) == sorted(contents(GOLDEN))
    assert all(layer["mediaType"].startswith("application/vnd.cncf.model.") for layer in manifest["layers"])


def test_each_kind_of_file_has_its_layer_type() -> None:
    kinds = {
        "weights.safetensors": "weight", "draft/head.safetensors": "weight", "config.json": "weight.config",
        "tokenizer/chat_template.jinja": "weight.config", "engines/cuda/decode.sm_90a.cubin": "code",
        "engines/cuda/engine.json": "weight.config", "sbom.cdx.json": "doc", "attestations/verify/report.json": "doc",
    }  # fmt: skip
    for name, kind in kinds.items():
        assert layer_type(name) == f"application/vnd.cncf.model.{kind}.v1.raw"


def test_a_name_that_leads_out_of_the_folder_is_refused(golden: Publication, tmp_path: Path) -> None:
    place(f"oci:{tmp_path}/a").publish(golden, replace=False)
    index = json.loads((tmp_path / "a/index.json").read_bytes())
    blob = tmp_path / "a/blobs/sha256" / index["manifests"][0]["digest"].removeprefix("sha256:")
    manifest = json.loads(blob.read_bytes())
    manifest["layers"][0]["annotations"]["org.cncf.model.filepath"] = "../../evil"
    blob.write_bytes(as_bytes(manifest))
    with pytest.raises(EnginewrightError, match=r"the name '../../evil' leads out of it"):
        pull(place(f"oci:{tmp_path}/a"), tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_an_artifact_of_another_kind_is_no_bundle() -> None:
    with pytest.raises(EnginewrightError, match="an artifact of type 'application/other'"):
        layers_of(as_bytes({"artifactType": "application/other", "layers": []}), "oci:x")
    with pytest.raises(EnginewrightError, match="not a ModelPack manifest"):
        layers_of(b"{}", "oci:x")


def test_a_registry_takes_a_bundle_once_and_gives_it_back(
    registry: FakeRegistry, golden: Publication, other: Publication, tmp_path: Path
) -> None:
    place(tag(registry)).publish(golden, replace=False)
    pull(place(tag(registry)), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)
    uploads = len(registry.uploads)
    assert "nothing was sent" in place(tag(registry)).publish(golden, replace=False).describe("x")
    assert len(registry.uploads) == uploads
    # The same digest as in a folder.
    place(f"oci:{tmp_path}/layout").publish(golden, replace=False)
    (entry,) = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    assert (tmp_path / "layout/blobs/sha256" / entry["digest"][7:]).read_bytes() == registry.tags["v1"]
    with pytest.raises(EnginewrightError, match="has another bundle"):
        place(tag(registry)).publish(other, replace=False)
    place(tag(registry)).publish(other, replace=True)
    assert pull(place(tag(registry)), tmp_path / "other").bundle_id == other.bundle.bundle_id


def test_a_push_that_broke_goes_on(registry: FakeRegistry, golden: Publication, tmp_path: Path) -> None:
    registry.failing_after = 4
    with pytest.raises(EnginewrightError, match="answers HTTP 500 for PUT; repeat the command"):
        place(tag(registry)).publish(golden, replace=False)
    assert registry.tags == {}
    with pytest.raises(EnginewrightError, match="no bundle there"):
        pull(place(tag(registry)), tmp_path / "none")
    first, registry.failing_after = set(registry.uploads), None
    place(tag(registry)).publish(golden, replace=False)
    assert len(registry.uploads) == len(set(registry.uploads))
    assert first < set(registry.uploads)


def test_a_registry_that_refuses_is_one_line_without_the_password(
    registry: FakeRegistry, golden: Publication, tmp_path: Path
) -> None:
    registry.is_read_only = True
    with pytest.raises(EnginewrightError, match=r"refuses \(HTTP 403 for POST\); log in with docker login"):
        place(tag(registry)).publish(golden, replace=False)
    (tmp_path / "user/.docker/config.json").write_text("{}")
    with pytest.raises(EnginewrightError, match=r"refuses \(HTTP 401") as caught:
        place(tag(registry)).publish(golden, replace=False)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_registry_that_is_not_there_is_one_line(golden: Publication) -> None:
    with pytest.raises(EnginewrightError, match=r"oci://127.0.0.1:9/org/model:v1: cannot be used") as caught:
        place("oci://127.0.0.1:9/org/model:v1").publish(golden, replace=False)
    assert "\n" not in str(caught.value)
