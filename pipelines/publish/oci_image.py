"""A bundle as an OCI artifact after the CNCF ModelPack specification: one layer for each file, as it is.

The same files give the same digests: nothing in it has a time or a machine. Media types, annotation and the fields of
the configuration: https://github.com/modelpack/model-spec.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.publish.errors import no_bundle
from pipelines.publish.publication import Publication
from runtime.formats.bundle import ENGINES_DIR
from runtime.formats.manifest import ATTESTATIONS_DIR, MANIFEST_FILE

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
CODE_TYPE = "application/vnd.cncf.model.code.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH = "org.cncf.model.filepath"
BUNDLE_ID = "enginewright.bundle.id"
MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Image:
    """The two documents of an artifact; its other blobs are the bundle's files."""

    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        return blob_digest(self.manifest)


def make_image(publication: Publication, licence: str) -> Image:
    """Describe a bundle as an artifact."""
    layers = [
        {
            "mediaType": layer_type(file.name),
            "digest": f"sha256:{file.sha256}",
            "size": file.size_bytes,
            "annotations": {FILE_PATH: file.name},
        }
        for file in publication.files
    ]
    config = as_bytes(model_config(publication, licence))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": descriptor(CONFIG_TYPE, config),
        "layers": layers,
        "annotations": {BUNDLE_ID: publication.bundle.bundle_id, "org.opencontainers.image.title": publication.name},
    }
    return Image(config, as_bytes(manifest))


def model_config(publication: Publication, licence: str) -> dict[str, Any]:
    """The model's description as the specification wants it."""
    model = publication.bundle.manifest["model"]
    spec = model.get("spec", {})
    description = {"name": publication.name, "revision": publication.bundle.bundle_id}
    return {
        "descriptor": description | ({"licenses": [licence]} if licence else {}),
        "config": {"architecture": "transformer", "format": "safetensors"}
        | ({"precision": spec["dtype"]} if "dtype" in spec else {})
        | {"capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]}},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in publication.files]},
    }


def layer_type(name: str) -> str:
    """The media type of one file of a bundle."""
    if name.startswith(f"{ATTESTATIONS_DIR}/") or name.endswith(".cdx.json"):
        return DOC_TYPE
    if name.endswith(".safetensors"):
        return WEIGHT_TYPE
    if name.startswith(f"{ENGINES_DIR}/") and not name.endswith(".json"):
        return CODE_TYPE  # compiled kernels
    return WEIGHT_CONFIG_TYPE


def layers_of(manifest: bytes, location: str) -> dict[str, str]:
    """Digest of each file of an artifact by its name, as `sha256:...`.

    Raises:
        EnginewrightError: not an artifact of a bundle.
    """
    try:
        fields = json.loads(manifest)
        if fields["artifactType"] != ARTIFACT_TYPE:
            raise no_bundle(location, f"an artifact of type {fields['artifactType']!r}")
        layers = {str(layer["annotations"][FILE_PATH]): str(layer["digest"]) for layer in fields["layers"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise no_bundle(location, f"not a ModelPack manifest: {error!r}") from error
    if MANIFEST_FILE not in layers:
        raise no_bundle(location, f"an artifact without {MANIFEST_FILE}")
    return layers


def descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob_digest(data), "size": len(data)}


def blob_digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def as_bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
