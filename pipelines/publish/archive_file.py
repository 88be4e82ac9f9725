"""One file, `<name>.tar.zst`: see runtime/formats/archive.py."""

from pathlib import Path

from pipelines.publish.errors import another_bundle, no_bundle, place_errors
from pipelines.publish.publication import Outcome, Publication
from runtime.formats.archive import archive_bundle, archived_digests, extract_bundle
from runtime.formats.manifest import MANIFEST_FILE


class ArchiveFile:
    def __init__(self, location: str) -> None:
        self.location = location
        self.path = Path(location)

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        with place_errors(self.location):
            if self.path.exists():
                there = archived_digests(self.path)
                if there == {file.name: file.sha256 for file in publication.files}:
                    return Outcome([], 0)
                if there.get(MANIFEST_FILE) != publication.bundle.bundle_id and not replace:
                    raise another_bundle(self.location, there.get(MANIFEST_FILE, ""), publication.bundle.bundle_id)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            archive_bundle(publication.bundle.path, self.path)
            return Outcome([file.name for file in publication.files], self.path.stat().st_size)

    def pull(self, folder: Path) -> None:
        if not self.path.is_file():
            raise no_bundle(self.location, "no such file")
        folder.rmdir()  # an archive makes its folder itself, whole
        extract_bundle(self.path, folder)
