"""What is said of a bundle when it is signed: in-toto statements, whose subject is the bundle's manifest.

Everything in them comes from the bundle itself, and nothing of the machine or the time of signing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.sbom import SBOM_FILE
from runtime.formats.attestations import VERIFY_REPORT, read_verified
from runtime.formats.bundle import Bundle
from runtime.formats.digest import sha256_file
from runtime.formats.manifest import MANIFEST_FILE
from runtime.formats.rebuild import rebuild_command
from runtime.trust.signatures import EVIDENCE_TYPE

BUILD_TYPE = "urn:enginewright:build:1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"


def provenance(bundle: Bundle, builder: str) -> bytes:
    """SLSA provenance: the command that builds it again, the digests of settings and code, and every material."""
    origin = bundle.manifest["provenance"]
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"command": rebuild_command(bundle.path, bundle.manifest), "targets": bundle.targets},
        "internalParameters": {name: origin[name] for name in ("config_digest", "code_digest") if name in origin},
        "resolvedDependencies": [*_sources(origin), *_libraries(bundle.path)],
    }
    return _statement(
        bundle, PROVENANCE_TYPE, {"buildDefinition": definition, "runDetails": {"builder": {"id": builder}}}
    )


def gate_result(bundle: Bundle) -> bytes | None:
    """The result of the engine gate, and the files it rests on; None where the gate was not run."""
    verified = read_verified(bundle.path)
    if verified is None:
        return None
    files = sorted((bundle.path / VERIFY_REPORT).parent.iterdir())
    outcome = ("PASSED", "passedTests") if verified.passed else ("FAILED", "failedTests")
    predicate = {
        "result": outcome[0],
        outcome[1]: ["engine gate"],
        "configuration": [_file(path.relative_to(bundle.path).as_posix(), sha256_file(path)) for path in files],
    }
    return _statement(bundle, TEST_RESULT_TYPE, predicate)


def evidence(bundle: Bundle, builder: str, files: Mapping[str, Path]) -> bytes:
    """The digest of every file that the manifest does not vouch for, by its path in the bundle."""
    references = [_file(name, sha256_file(path)) for name, path in sorted(files.items())]
    return _statement(bundle, EVIDENCE_TYPE, {"attester": {"id": builder}, "references": references})


def _statement(bundle: Bundle, predicate_type: str, predicate: dict[str, Any]) -> bytes:
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    subject = ResourceDescriptor(MANIFEST_FILE, digest={"sha256": bundle.bundle_id})
    statement = Statement([subject.pb], predicate_type, predicate)
    statement.validate()
    return json.dumps(MessageToDict(statement.pb), sort_keys=True).encode()


def _sources(origin: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The files of the model, and of the smaller one that drafts for it where there is one."""
    for source in (origin[name] for name in ("source", "draft_source") if name in origin):
        yield from (
            _file(entry["path"], entry["sha256"]) | {"uri": f"{source['uri']}#{entry['path']}"}
            for entry in source.get("files", [])
        )


def _libraries(folder: Path) -> Iterator[dict[str, Any]]:
    """The libraries that decided the bytes; none in a bundle older than the bill of materials."""
    if (folder / SBOM_FILE).is_file():
        parts = json.loads((folder / SBOM_FILE).read_text(encoding="utf-8"))["components"]
        yield from ({"uri": part["purl"]} for part in parts if "purl" in part)


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
