"""The bundle's bill of materials: a CycloneDX 1.6 ML-BOM of the model, its source, its weights and what made them.

Deterministic: no time, no serial number; everything in it comes from the source, the weights and installed versions.
"""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.formats.bundle import DRAFT_DIR
from runtime.formats.checkpoint import WEIGHTS_FILE
from runtime.formats.digest import sha256_file

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

SBOM_FILE = "sbom.cdx.json"
LIBRARY = "cyclonedx-python-lib"


class Described(NamedTuple):
    """A model's components, and its card, which the library cannot say yet."""

    model: "Component"
    weights: "Component"
    sources: list["Component"]
    card: dict[str, Any]


def write_sbom(
    folder: Path, name: str, fetched: Path, libraries: Sequence[str], draft_fetched: Path | None = None
) -> None:
    """Write the bill of a bundle's folder that has its config and weights, and a drafting model where it has one.

    Args:
        fetched: the fetch stage's output, with `source.json` and `source/`.
        libraries: distributions whose versions decided the bytes.
        draft_fetched: the same of the model that drafts.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    tools = [_library(library) for library in sorted({*libraries, "python"})]
    main = _describe(folder, "", name, fetched)
    drafts = [_describe(folder, f"{DRAFT_DIR}/", f"{name}-draft", draft_fetched)] if draft_fetched else []
    bom = Bom(components=[*(draft.model for draft in drafts), *tools])
    bom.metadata.component = main.model
    for part in (main, *drafts):
        bom.components.update([part.weights, *part.sources])
        bom.register_dependency(part.model, [part.weights])
        bom.register_dependency(part.weights, [*part.sources, *tools])
    bom.register_dependency(main.model, [draft.model for draft in drafts])
    fields = json.loads(JsonV1Dot6(bom).output_as_string())
    fields.pop("serialNumber", None)
    fields["metadata"].pop("timestamp", None)
    written = {part["bom-ref"]: part for part in (fields["metadata"]["component"], *fields["components"])}
    for part in (main, *drafts):
        written[part.model.bom_ref.value]["modelCard"] = part.card
    (folder / SBOM_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _describe(folder: Path, prefix: str, name: str, fetched: Path) -> Described:
    """The components of the model whose files are below `prefix` in the bundle."""
    from cyclonedx.model.component import Component, ComponentType

    source = json.loads((fetched / "source.json").read_text(encoding="utf-8"))
    config = json.loads((folder / prefix / "config.json").read_text(encoding="utf-8"))
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        version=source["revision"],
        bom_ref=f"{prefix}model",
        licenses=_licenses(stated_license(fetched / "source")),
        properties=_properties({"source:kind": source["kind"], "source:uri": source["uri"], "dtype": config["dtype"]}),
    )
    weights = _file(f"{prefix}{WEIGHTS_FILE}", sha256_file(folder / prefix / WEIGHTS_FILE))
    sources = [_file(f"{prefix}source/{entry['path']}", entry["sha256"]) for entry in source["files"]]
    return Described(model, weights, sources, model_card(config))


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
