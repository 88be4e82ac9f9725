"""Content digests of files, folders and plain data: full sha256, never shortened."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.formats.digest import sha256_file


@dataclass(frozen=True)
class FileEntry:
    """One file of a folder."""

    path: str  # relative, with forward slashes
    size: int
    sha256: str


def folder_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below a folder, by path. Empty folders do not count.

    Raises:
        ValueError: something that is neither file nor folder, whose content cannot be vouched for.
    """
    entries = []
    for path in sorted(folder.rglob("*"), key=lambda item: item.relative_to(folder).as_posix()):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a file nor a folder; a stage's output holds nothing else")
        if path.is_file():
            entries.append(FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path)))
    return tuple(entries)


def content_digest(entries: Iterable[FileEntry]) -> str:
    """The digest of a folder's content: sorted (relative path, file sha256)."""
    return json_digest(sorted((entry.path, entry.sha256) for entry in entries))


def json_digest(value: Any) -> str:
    """The digest of plain data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
