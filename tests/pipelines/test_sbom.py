"""The bill of materials follows CycloneDX's own schema, says what is in the bundle, and is the same each time."""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipelines.sbom import SBOM_FILE, stated_license, write_sbom
from runtime.formats.manifest import write_manifest
from tests.pipelines.running_stages import fetch_and_convert
from tests.pipelines.tiny_models import make_gguf_file, make_hf_folder

LIBRARIES = ["torch", "numpy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetched, and converted to where the bundle is to be."""
    root = tmp_path_factory.mktemp("made")
    model = make_hf_folder(root / "my model")  # a name that no URI may hold as it is
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"license": "apache-2.0"}))
    fetch_and_convert(model, root)
    return root


def write(folder: Path) -> dict:
    write_sbom(folder / "convert", "tiny-fp32", folder / "fetch", LIBRARIES)
    return json.loads((folder / "convert" / SBOM_FILE).read_text())


def test_it_follows_the_schema_of_cyclonedx_1_6(folder: Path) -> None:
    write(folder)
    text = (folder / "convert" / SBOM_FILE).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"machine-learning-model"', '"no-such-type"')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_it_says_what_the_model_is_and_what_it_was_made_of(folder: Path) -> None:
    fields = write(folder)
    model = fields["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "tiny-fp32")
    assert model["modelCard"]["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert {"name": "enginewright:source:uri", "value": "my model"} in model["properties"]
    hashes = {part["name"]: part["hashes"][0]["content"] for part in fields["components"] if part["type"] == "file"}
    for name, path in (
        ("weights.safetensors", folder / "convert/weights.safetensors"),
        ("source/model.safetensors", folder / "fetch/source/model.safetensors"),
    ):
        assert hashes[name] == hashlib.sha256(path.read_bytes()).hexdigest()
    versions = {part["name"]: part["version"] for part in fields["components"] if part["type"] == "library"}
    assert versions == {name: version(name) for name in LIBRARIES}
    refs = {part["bom-ref"] for part in fields["components"]} | {"model"}
    assert {item for entry in fields["dependencies"] for item in (entry["ref"], *entry.get("dependsOn", []))} == refs


def test_a_model_that_drafts_is_a_model_of_its_own_with_its_source(folder: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(folder / "convert", tmp_path / "bundle")
    smaller = make_hf_folder(tmp_path / "smaller", num_layers=1, seed=3)
    fetch_and_convert(smaller, tmp_path / "made")
    shutil.copytree(tmp_path / "made/convert", bundle / "draft")
    write_sbom(bundle, "tiny-fp32", folder / "fetch", LIBRARIES, tmp_path / "made/fetch")
    text = (bundle / SBOM_FILE).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    fields = json.loads(text)
    parts = {part["bom-ref"]: part for part in fields["components"]}
    draft = parts["draft/model"]
    assert (draft["type"], draft["name"]) == ("machine-learning-model", "tiny-fp32-draft")
    assert draft["modelCard"] == fields["metadata"]["component"]["modelCard"]
    assert {"name": "enginewright:source:uri", "value": "smaller"} in draft["properties"]
    for name, path in (("draft/weights.safetensors", bundle / "draft/weights.safetensors"),
                       ("draft/source/model.safetensors", smaller / "model.safetensors")):  # fmt: skip
        assert parts[f"file:{name}"]["hashes"][0]["content"] == hashlib.sha256(path.read_bytes()).hexdigest()
    needs = {entry["ref"]: set(entry.get("dependsOn", [])) for entry in fields["dependencies"]}
    assert needs["model"] == {"file:weights.safetensors", "draft/model"}
    assert needs["draft/model"] == {"file:draft/weights.safetensors"}
    assert "file:draft/source/model.safetensors" in needs["file:draft/weights.safetensors"]
    assert "file:draft/source/model.safetensors" not in needs["file:weights.safetensors"]


def test_it_is_the_same_each_time_and_the_manifest_vouches_for_it(folder: Path) -> None:
    assert write(folder) == write(folder)
    text = (folder / "convert" / SBOM_FILE).read_text()
    assert "timestamp" not in text
    assert "serialNumber" not in text
    write_manifest(folder / "convert", {}, {}, {})
    assert SBOM_FILE in json.loads((folder / "convert/manifest.json").read_text())["files"]


def test_a_source_that_states_no_licence_has_none(tmp_path: Path) -> None:
    make_gguf_file(tmp_path / "m.gguf")
    assert stated_license(tmp_path) == ""
    assert stated_license(tmp_path / "empty") == ""
