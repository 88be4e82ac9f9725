"""The bundle's bill of materials: a CycloneDX 1.6 ML-BOM of the model, its source, its weights and what made them.

Deterministic: no time, no serial number; everything in it comes from the source, the weights and installed versions.
"""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runtime.formats.checkpoint import WEIGHTS_FILE
from runtime.formats.digest import sha256_file

SBOM_FILE = "sbom.cdx.json"
LIBRARY = "cyclonedx-python-lib"


def write_sbom(folder: Path, name: str, fetched: Path, libraries: Sequence[str]) -> None:
    """Write the bill of a bundle's folder that has its config and weights.

    Args:
        fetched: the fetch stage's output, with `source.json` and `source/`.
        libraries: distributions whose versions decided the bytes.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    source = json.loads((fetched / "source.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = _file(WEIGHTS_FILE, sha256_file(folder / WEIGHTS_FILE))
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        version=source["revision"],
        bom_ref="model",
        licenses=_licenses(stated_license(fetched / "source")),
        properties=_properties({"source:kind": source["kind"], "source:uri": source["uri"], "dtype": config["dtype"]}),
    )
    parts = [weights, *(_file(f"source/{entry['path']}", entry["sha256"]) for entry in source["files"])]
    tools = [_library(library) for library in sorted({*libraries, "python"})]
    bom = Bom(components=[*parts, *tools])
    bom.metadata.component = model
    bom.register_dependency(model, [weights])
    bom.register_dependency(weights, [*parts[1:], *tools])
    fields = json.loads(JsonV1Dot6(bom).output_as_string())
    fields.pop("serialNumber", None)
    fields["metadata"].pop("timestamp", None)
    fields["metadata"]["component"]["modelCard"] = model_card(config)  # which the library cannot say yet
    (folder / SBOM_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(config: dict[str, Any]) -> dict[str, Any]:
    """What the model is, takes and gives, of a checkpoint's config."""
    return {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "decoder-only transformer",
            "modelArchitecture": config["architecture"],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        }
    }


def stated_license(source: Path) -> str:
    """The licence that the source itself states, in GGUF metadata or config.json; empty where it states none."""
    for path in sorted(source.glob("*.gguf")):
        from pipelines.convert.gguf_file import GgufFile

        return str(GgufFile(path).get("general.license", str, ""))
    try:
        stated = json.loads((source / "config.json").read_text(encoding="utf-8")).get("license", "")
    except (OSError, ValueError, AttributeError):
        return ""
    return stated if isinstance(stated, str) else ""


def _licenses(stated: str) -> list[Any]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(stated)] if stated else []


def _file(path: str, sha256: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]
    return Component(type=ComponentType.FILE, name=path, bom_ref=f"file:{path}", hashes=hashes)


def _library(name: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    if name == "python":
        return Component(
            type=ComponentType.PLATFORM, name=name, version=platform.python_version(), bom_ref="platform:python"
        )
    found = version(name)
    return Component(type=ComponentType.LIBRARY, name=name, version=found, bom_ref=f"library:{name}",
                     purl=PackageURL("pypi", None, name, found))  # fmt: skip


def _properties(values: dict[str, str]) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"enginewright:{name}", value=value) for name, value in values.items()]
