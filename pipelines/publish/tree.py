"""A tree of files on any file system that fsspec knows: a folder, s3://, gs://, memory://."""

import hashlib
from pathlib import Path
from typing import Any

from pipelines.publish.publication import PublishedFile

CHUNK_BYTES = 2**20
IGNORED_PART = "__pycache__"


class Tree:
    """Files below one URL or folder, by their path from there."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.fs: Any
        self.fs, root = url_to_fs(url)
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by name; empty where nothing is there."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):
            return {}
        found = self.fs.find(self.root, detail=True)
        names = {path.removeprefix(self.root).lstrip("/"): int(info["size"]) for path, info in found.items()}
        return {name: size for name, size in names.items() if IGNORED_PART not in name.split("/")}

    def read(self, name: str) -> bytes:
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def digest(self, name: str) -> str:
        """Sha256 of a file, which is read for it."""
        digest = hashlib.sha256()
        with self.fs.open(self.path(name), "rb") as file:
            while data := file.read(CHUNK_BYTES):
                digest.update(data)
        return digest.hexdigest()

    def send(self, file: PublishedFile) -> None:
        self.fs.makedirs(self.path(file.name).rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(file.path), self.path(file.name))

    def rename(self, name: str, new: str) -> None:
        self.fs.mv(self.path(name), self.path(new))

    def remove(self, name: str) -> None:
        self.fs.rm_file(self.path(name))

    def fetch(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get_file(self.path(name), str(path))
