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
from runtime.formats.archive import bundle_folder
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.manifest import MANIFEST_FILE, checked_manifest
from runtime.text.tokenizer import Tokenizer

ENGINES_DIR = "engines"
DRAFT_DIR = "draft"
DRAFT_FILE = "draft.json"  # in DRAFT_DIR: which drafter


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
    text = checked_manifest(path)
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
