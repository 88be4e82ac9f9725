"""Checks the signatures of a bundle, before anything else of it is read.

    attestations/signatures/model.sig               OpenSSF model signature: manifest.json and all that it vouches for
    attestations/signatures/provenance.intoto.json  SLSA provenance
    attestations/signatures/verify.intoto.json      the result of the engine gate, where it was run
    attestations/signatures/evidence.intoto.json    the sha256 of every other file below attestations/

The last covers the others, so that one changed byte anywhere is found. pipelines/signing writes them. The libraries,
the extra `trust`, are imported when a signature is checked.
"""

from pathlib import Path
from typing import Any

from runtime.errors import EnginewrightError
from runtime.formats.archive import bundle_folder
from runtime.formats.digest import sha256_file
from runtime.formats.manifest import ATTESTATIONS_DIR, MANIFEST_FILE

SIGNATURES_DIR = Path(ATTESTATIONS_DIR, "signatures")
MODEL_SIGNATURE = "model.sig"
EVIDENCE = "evidence.intoto.json"
EVIDENCE_TYPE = "https://in-toto.io/attestation/reference/v0.1"
STATEMENTS = "*.intoto.json"


def require_signature(bundle: Path, public_key: Path) -> Path:
    """Check that a bundle, a folder or an archive, is what the key's owner signed; return its folder.

    Raises:
        EnginewrightError: it is not signed, or by another key, or a file was changed, added or taken away since.
    """
    try:
        from runtime.trust.envelope import read_public_key, read_statement
        from runtime.trust.model_signature import check_model
    except ImportError as error:
        raise EnginewrightError(
            f"checking a signature needs the extra trust ({error}): pip install 'enginewright[trust]', or "
            "model-signing and pyOpenSSL"
        ) from error
    key = read_public_key(public_key)
    folder = bundle_folder(bundle).resolve()
    signatures = folder / SIGNATURES_DIR
    evidence = read_statement(signatures / EVIDENCE, key)
    if evidence["predicateType"] != EVIDENCE_TYPE:
        raise EnginewrightError(f"{signatures / EVIDENCE}: another statement of the signer; get the bundle again")
    _check_attestations(folder, evidence["predicate"]["references"])
    check_model(folder, signatures / MODEL_SIGNATURE, public_key)
    digest = {"sha256": sha256_file(folder / MANIFEST_FILE)}
    for path in sorted(signatures.glob(STATEMENTS)):
        subjects = read_statement(path, key)["subject"]
        if [subject["digest"] for subject in subjects] != [digest]:
            raise EnginewrightError(f"{path}: speaks of another bundle; get the bundle again")
    return folder


def attested_files(folder: Path) -> set[str]:
    """Every file below a bundle's attestations but the statement of their digests, by its path in the bundle."""
    files = (path.relative_to(folder) for path in (folder / ATTESTATIONS_DIR).rglob("*") if not path.is_dir())
    return {path.as_posix() for path in files if path != SIGNATURES_DIR / EVIDENCE}


def _check_attestations(folder: Path, references: list[dict[str, Any]]) -> None:
    expected = {reference["name"]: reference["digest"]["sha256"] for reference in references}
    for name in sorted(attested_files(folder) ^ set(expected)):
        fault = "missing since it was signed" if name in expected else "added since it was signed"
        raise EnginewrightError(f"{folder / name}: {fault}; get the bundle again, or sign it again")
    for name, digest in expected.items():
        if sha256_file(folder / name) != digest:
            raise EnginewrightError(f"{folder / name}: changed since it was signed; get the bundle again")
