"""An OCI image layout in a folder, `oci:<folder>`: blobs by their digest, and index.json, which makes it whole, last.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import json
import os
import re
import shutil
from pathlib import Path

from pipelines.bundles import copy_file
from pipelines.publish.errors import another_bundle, no_bundle, place_errors
from pipelines.publish.folder import inside
from pipelines.publish.licence import licence_of
from pipelines.publish.oci_image import (
    ARTIFACT_TYPE,
    MANIFEST_TYPE,
    Image,
    as_bytes,
    blob_digest,
    descriptor,
    layers_of,
    make_image,
)
from pipelines.publish.publication import Outcome, Publication
from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file
from runtime.formats.manifest import MANIFEST_FILE

INDEX, LAYOUT, BLOBS = "index.json", "oci-layout", "blobs/sha256"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
SHA256 = re.compile(r"sha256:([0-9a-f]{64})")


class OciLayout:
    """A layout with one bundle. `folder` is made where it is missing."""

    def __init__(self, folder: str) -> None:
        self.location = f"oci:{folder}"
        self.folder = Path(folder)

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        image = make_image(publication, licence_of(publication.bundle.path))
        index = self._index(image, publication.name)
        with place_errors(self.location):
            self._require_free(publication, replace)
            self._blobs.mkdir(parents=True, exist_ok=True)
            sent = [file for file in publication.files if self._add_file(file.path, file.sha256, file.size_bytes)]
            for data in (image.config, image.manifest):
                self._write(self._blob(blob_digest(data)), data)
            self._write(self.folder / LAYOUT, b'{"imageLayoutVersion":"1.0.0"}')
            is_new = self._write(self.folder / INDEX, index)
            removed = self._sweep({file.sha256 for file in publication.files}, image)
        names = [file.name for file in sent] + ([INDEX] if is_new else [])
        return Outcome(names, sum(file.size_bytes for file in sent), removed, f"; digest {image.digest}")

    def pull(self, folder: Path) -> None:
        with place_errors(self.location):
            manifest = self._manifest()
            if manifest is None:
                raise no_bundle(self.location, f"no {INDEX}")
            for name, digest in layers_of(manifest, self.location).items():
                path = inside(folder, name, self.location)
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._blob(digest), path)
                if f"sha256:{sha256_file(path)}" != digest:
                    raise EnginewrightError(
                        f"{self._blob(digest)}: has another digest, {name} is damaged; publish again"
                    )

    @property
    def _blobs(self) -> Path:
        return self.folder / BLOBS

    def _blob(self, digest: str) -> Path:
        found = SHA256.fullmatch(digest)
        if found is None:
            raise no_bundle(self.location, f"the digest {digest!r}")
        return self._blobs / found[1]

    def _index(self, image: Image, name: str) -> bytes:
        entry = descriptor(MANIFEST_TYPE, image.manifest) | {
            "artifactType": ARTIFACT_TYPE,
            "annotations": {REF_NAME: name},
        }
        return as_bytes({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})

    def _manifest(self) -> bytes | None:
        """The manifest of the artifact that is there; None where none is."""
        index = self.folder / INDEX
        if not index.is_file():
            return None
        try:
            digests = [str(entry["digest"]) for entry in json.loads(index.read_bytes())["manifests"]]
        except (ValueError, KeyError, TypeError) as error:
            raise no_bundle(self.location, f"{INDEX} is none: {error!r}") from error
        if len(digests) != 1:
            raise no_bundle(self.location, f"{INDEX} names {len(digests)} artifacts, a bundle's layout has one")
        return self._blob(digests[0]).read_bytes()

    def _require_free(self, publication: Publication, replace: bool) -> None:
        """Refuse a folder that holds something else, or another bundle that may not be replaced."""
        names = {path.name for path in self.folder.glob("*") if path.suffix != ".tmp"}
        if foreign := sorted(names - {INDEX, LAYOUT, "blobs"}):
            raise EnginewrightError(
                f"{self.location}: has files that are no OCI layout ({foreign[0]}); empty it, or name another place"
            )
        manifest = self._manifest()
        if manifest is None:
            return
        there = layers_of(manifest, self.location)[MANIFEST_FILE].removeprefix("sha256:")
        if there != publication.bundle.bundle_id:
            if not replace:
                raise another_bundle(self.location, there, publication.bundle.bundle_id)
            (self.folder / INDEX).unlink()

    def _add_file(self, path: Path, digest: str, size_bytes: int) -> bool:
        """Copy a file in unless it is there; whether it was copied."""
        blob = self._blobs / digest
        if blob.is_file() and blob.stat().st_size == size_bytes and sha256_file(blob) == digest:
            return False
        temporary = blob.with_name(f".{digest}.tmp")
        copy_file(str(path), str(temporary))
        os.replace(temporary, blob)
        return True

    def _write(self, path: Path, data: bytes) -> bool:
        if path.is_file() and path.read_bytes() == data:
            return False
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
        return True

    def _sweep(self, digests: set[str], image: Image) -> list[str]:
        """Remove blobs that nothing names any more."""
        named = digests | {blob_digest(data).removeprefix("sha256:") for data in (image.config, image.manifest)}
        stale = sorted(path for path in self._blobs.iterdir() if path.name not in named)
        for path in stale:
            path.unlink()
        return [path.name for path in stale]
