"""The manifest of a bundle: what is in it, and the size and sha256 of every file that it vouches for.

It is deterministic, and its SHA-256 is the bundle's id. Files below attestations/ vary between builds of one bundle; it
does not name them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file

MANIFEST_FILE = "manifest.json"
ATTESTATIONS_DIR = "attestations"
SCHEMA = 1


def write_manifest(folder: Path, model: dict[str, Any], targets: dict[str, Any], provenance: dict[str, Any]) -> str:
    """Write the manifest of a finished folder and return the bundle's id. Call it last.

    `model`, `targets` and `provenance` must not vary between builds of the same inputs.
    """
    files = {
        name: {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in sorted(_vouched(folder))
    }
    manifest = {"schema": SCHEMA, "model": model, "targets": targets, "provenance": provenance, "files": files}
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def checked_manifest(folder: Path) -> bytes:
    """A bundle's manifest, once every file of the folder was found to be what it says.

    Raises:
        EnginewrightError: no bundle here, a schema this version cannot read, or a file missing, changed or added.
    """
    manifest = folder / MANIFEST_FILE
    try:
        text = manifest.read_bytes()
    except OSError as error:
        raise EnginewrightError(
            f"{folder}: no engine bundle here ({MANIFEST_FILE}: {error.strerror}); give the folder of a bundle, or its "
            ".tar.zst"
        ) from error
    expected = expected_files(text, manifest)
    try:
        _check_files(folder, expected)
    except OSError as error:
        raise EnginewrightError(
            f"{error.filename}: cannot be read ({error.strerror}); check its permissions, or copy the bundle again"
        ) from error
    return text


def expected_files(manifest: bytes, origin: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file that a manifest names; `origin` names it in errors.

    Raises:
        EnginewrightError: not a manifest, of a schema this version cannot read, or a name that leads out of the bundle.
    """
    try:
        fields = json.loads(manifest)
        schema = fields["schema"]
        files = fields["files"] if schema == SCHEMA else {}
        expected = {str(name): (int(entry["size_bytes"]), str(entry["sha256"])) for name, entry in files.items()}
        if schema == SCHEMA and not all(isinstance(fields[part], dict) for part in ("model", "targets", "provenance")):
            raise TypeError("model, targets or provenance is no mapping")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EnginewrightError(f"{origin}: not a bundle manifest ({error!r}); build the bundle again") from error
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        remedy = "use a newer version" if newer else "use the version that built it"
        raise EnginewrightError(
            f"{origin}: schema {schema}, this version reads schema {SCHEMA}; {remedy}, or build it again"
        )
    for name in expected:
        if name.startswith("/") or "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise EnginewrightError(f"{origin}: the file name {name!r} leads out of the bundle; build it again")
    return expected


def _check_files(path: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Compare every file with its size and sha256, and refuse one that nothing vouches for: loading might read it."""
    if added := sorted(_vouched(path) - set(files)):
        raise EnginewrightError(f"{path / added[0]}: not in the manifest; remove it, or copy or build the bundle again")
    for name, (expected_size, expected_digest) in files.items():
        file = path / name
        if not file.is_file():
            raise EnginewrightError(f"{file}: missing from the bundle; copy or build it again")
        size = file.stat().st_size
        if size != expected_size:
            raise EnginewrightError(f"{file}: {size} bytes, the manifest says {expected_size}; copy or build it again")
        digest = sha256_file(file)
        if digest != expected_digest:
            raise EnginewrightError(
                f"{file}: sha256 {digest}, the manifest says {expected_digest}; copy or build it again"
            )


def _vouched(folder: Path) -> set[str]:
    """Every file that a manifest answers for, by its path in the bundle."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix() for name in names if name.parts[0] not in (MANIFEST_FILE, ATTESTATIONS_DIR)}
