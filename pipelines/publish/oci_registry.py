"""An OCI registry, `oci://<registry>/<name>:<tag>`: the artifact of oci_image.py, blob by blob, its manifest last.

Credentials are docker's own (`docker login`, credential helpers), read by the library oras, whose uploads would hold a
whole file in memory. Registries on this machine are spoken to without TLS.
"""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from pipelines.publish.errors import AGAIN, another_bundle, no_bundle, place_errors, shown
from pipelines.publish.folder import inside
from pipelines.publish.licence import licence_of
from pipelines.publish.oci_image import MANIFEST_TYPE, blob_digest, layers_of, make_image
from pipelines.publish.publication import Outcome, Publication
from runtime.errors import EnginewrightError
from runtime.formats.manifest import MANIFEST_FILE

TIMEOUT_S = 60
CHUNK_BYTES = 2**20
HERE = ("localhost", "127.0.0.1", "[::1]")


class OciRegistry:
    """One tag of one repository."""

    def __init__(self, location: str) -> None:
        self.location = location
        with place_errors(location):
            import oras.auth
            import oras.container

            self.container = oras.container.Container(location.removeprefix("oci://"))
            insecure = self.container.registry.rpartition(":")[0] in HERE or self.container.registry in HERE
            self.root = f"{'http' if insecure else 'https'}://{self.container.registry}/v2/{self.container.api_prefix}"
            self.session = requests.Session()
            self.auth: Any = oras.auth.get_auth_backend("token", self.session, insecure)
            self.auth.load_configs(self.container)

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        image = make_image(publication, licence_of(publication.bundle.path))
        with place_errors(self.location):
            there = self._manifest()
            if there == image.manifest:
                return Outcome([], 0, note=f"; digest {image.digest}")
            if there is not None:
                bundle_id = layers_of(there, self.location)[MANIFEST_FILE].removeprefix("sha256:")
                if bundle_id != publication.bundle.bundle_id and not replace:
                    raise another_bundle(self.location, bundle_id, publication.bundle.bundle_id)
            sent = [file for file in publication.files if self._upload(f"sha256:{file.sha256}", file.path)]
            self._upload(blob_digest(image.config), image.config)
            self._ask("PUT", f"/manifests/{self.container.tag}", image.manifest, {"Content-Type": MANIFEST_TYPE})
        names = [*(file.name for file in sent), "manifest"]
        return Outcome(names, sum(file.size_bytes for file in sent), note=f"; digest {image.digest}")

    def pull(self, folder: Path) -> None:
        with place_errors(self.location):
            manifest = self._manifest()
            if manifest is None:
                raise no_bundle(self.location, f"no tag {self.container.tag}")
            for name, digest in layers_of(manifest, self.location).items():
                path = inside(folder, name, self.location)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._download(digest, path)

    def _manifest(self) -> bytes | None:
        """The manifest of the tag; None where there is none."""
        answer = self._ask("GET", f"/manifests/{self.container.tag}", headers={"Accept": MANIFEST_TYPE}, missing=True)
        return answer.content if answer.ok else None

    def _upload(self, digest: str, content: Path | bytes) -> bool:
        """Send a blob unless the repository has it; whether it was sent."""
        if self._ask("HEAD", f"/blobs/{digest}", missing=True).ok:
            return False
        begun = self._ask("POST", "/blobs/uploads/")
        address = requests.Request("PUT", urljoin(begun.url, begun.headers["Location"]), params={"digest": digest})
        self._ask("PUT", str(address.prepare().url), content, {"Content-Type": "application/octet-stream"})
        return True

    def _download(self, digest: str, path: Path) -> None:
        found = hashlib.sha256()
        with path.open("wb") as file, self._ask("GET", f"/blobs/{digest}", stream=True) as answer:
            for data in answer.iter_content(CHUNK_BYTES):
                found.update(data)
                file.write(data)
        if f"sha256:{found.hexdigest()}" != digest:
            raise EnginewrightError(
                f"{shown(self.location)}: {path.name} arrived damaged, sha256 {found.hexdigest()}; {AGAIN}"
            )

    def _ask(
        self, method: str, path: str, content: Path | bytes | None = None, headers: dict[str, str] | None = None,
        missing: bool = False, stream: bool = False,
    ) -> requests.Response:  # fmt: skip
        """One request, once more with a new token where the first is refused; `missing` lets a 404 be an answer."""
        url = path if "://" in path else self.root + path
        answer = self._send(method, url, content, {**self.auth.get_auth_header(), **(headers or {})}, stream)
        if answer.status_code == 401:
            more, changed = self.auth.authenticate_request(answer, dict(headers or {}), refresh=True)
            answer = self._send(method, url, content, more, stream) if changed else answer
        if answer.status_code in (401, 403):
            raise EnginewrightError(
                f"{shown(self.location)}: the registry refuses (HTTP {answer.status_code} for {method}); log in with "
                f"docker login {self.container.registry}, with an account that may do this"
            )
        if not answer.ok and not (missing and answer.status_code == 404):
            raise EnginewrightError(
                f"{shown(self.location)}: the registry answers HTTP {answer.status_code} for {method}; {AGAIN}"
            )
        return answer

    def _send(
        self, method: str, url: str, content: Path | bytes | None, headers: dict[str, str], stream: bool
    ) -> requests.Response:
        with ExitStack() as stack:
            data = stack.enter_context(content.open("rb")) if isinstance(content, Path) else content
            return self.session.request(method, url, data=data, headers=headers, stream=stream, timeout=TIMEOUT_S)
