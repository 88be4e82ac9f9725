"""The engine bundle: one folder with everything an engine needs, and a manifest that vouches for every byte of it.

    manifest.json          schema, model, targets, provenance, sha256 and size of every file below but attestations/
    config.json            the model spec and the dtype of the weights
    weights.safetensors    one copy for every target
    tokenizer/             tokenizer.json, generation.json, chat_template.jinja
    engines/<target>/      the compiled engine of each target
    draft/                 draft.json and the drafter's files, where the bundle carries one
    attestations/          what varies between builds of the same bundle: verify and bench results, host, times

The manifest is deterministic and its SHA-256 is the bundle's id: the same inputs give the same id.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.digest import sha256_file
from runtime.text.tokenizer import Tokenizer

MANIFEST_FILE = "manifest.json"
ATTESTATIONS_DIR = "attestations"
ENGINES_DIR = "engines"
DRAFT_DIR = "draft"
DRAFT_FILE = "draft.json"  # in DRAFT_DIR: which drafter
SCHEMA = 1


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were all found to be what the manifest says."""

    path: Path
    bundle_id: str
    manifest: Mapping[str, Any]

    @property
    def targets(self) -> list[str]:
        return sorted(self.manifest["targets"])

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.path)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.path / "tokenizer")

    @property
    def draft_dir(self) -> Path | None:
        """Folder of the drafter that the bundle carries; None where it carries none."""
        folder = self.path / DRAFT_DIR
        return folder if folder.is_dir() else None

    def engine_dir(self, target: str) -> Path:
        """Folder of one target's engine.

        Raises:
            EnginewrightError: the bundle has no engine for it.
        """
        if target not in self.manifest["targets"]:
            raise EnginewrightError(
                f"{self.path}: no engine for target {target!r}, only for {', '.join(self.targets)}; build it with "
                f"make engine MODEL={self.manifest['model']['name']} TARGET={target}"
            )
        return self.path / ENGINES_DIR / target


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


def bundle_folder(path: Path) -> Path:
    """A bundle's folder; an archive is extracted to that of its name beside it, unless it is there already.

    Raises:
        EnginewrightError: the archive is damaged, or another bundle is there.
    """
    if path.name.endswith(".tar.zst") and not path.is_dir():
        from runtime.formats.archive import extract_bundle

        return extract_bundle(path)
    return path


def open_bundle(path: Path, trust: Path | None = None) -> Bundle:
    """Open a bundle, a folder or an archive, and check every file against the manifest.

    Args:
        trust: the PEM of a public key; the bundle must be what its owner signed.

    Raises:
        EnginewrightError: no bundle here, a schema this version cannot read, or a file missing, changed or added.
    """
    path = bundle_folder(path)
    if trust is not None:
        from runtime.trust.signatures import require_signature

        require_signature(path, trust)
    manifest_path = path / MANIFEST_FILE
    try:
        text = manifest_path.read_bytes()
    except OSError as error:
        raise EnginewrightError(
            f"{path}: no engine bundle here ({MANIFEST_FILE}: {error.strerror}); give the folder of a bundle, or its "
            ".tar.zst"
        ) from error
    expected = expected_files(text, manifest_path)
    try:
        _check_files(path, expected)
    except OSError as error:
        raise EnginewrightError(
            f"{error.filename}: cannot be read ({error.strerror}); check its permissions, or copy the bundle again"
        ) from error
    return Bundle(path, hashlib.sha256(text).hexdigest(), json.loads(text))


def built_targets(path: Path) -> dict[str, dict[str, Any]]:
    """What each target that a bundle has an engine for needs; opening it checks the rest. Of what is no bundle: cpu."""
    if path.name.endswith(".tar.zst") and not path.is_dir():
        return dict(open_bundle(path).manifest["targets"])
    try:
        targets = dict(json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["targets"])
        return {name: dict(targets[name]) for name in sorted(targets)} or {"cpu": {}}
    except (OSError, ValueError, KeyError, TypeError):
        return {"cpu": {}}


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
