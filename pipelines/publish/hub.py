"""A repository of the Hugging Face Hub, `hub:<org>/<name>`: the bundle in `bundle/`, beside a model card.

All changes are one commit, so a reader sees the old state or the new one. Large files go ahead of it, and those that
the Hub has already are not sent again. The token is HF_TOKEN's; a repository that is not there is made, private.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.bundles import copy_file
from pipelines.config_errors import causes
from pipelines.publish.errors import AGAIN, another_bundle, no_bundle, place_errors, reason_of, shown
from pipelines.publish.folder import inside
from pipelines.publish.model_card import model_card
from pipelines.publish.publication import Outcome, Publication, PublishedFile
from pipelines.sources.hub import git_blob_id
from pipelines.sources.hub_address import SCHEME, is_hub_name, parse_address
from pipelines.sources.hub_errors import quiet_library
from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file
from runtime.formats.manifest import MANIFEST_FILE

BUNDLE = "bundle/"
CARD = "README.md"


class HubRepository:
    """One repository, at its main branch or `@revision`."""

    def __init__(self, repo: str) -> None:
        self.location = SCHEME + repo
        if not is_hub_name(repo) or "#" in repo:
            raise EnginewrightError(f"{shown(self.location)!r} is not hub:<org>/<name>[@<branch>]")
        address = parse_address(self.location)
        self.repo, self.revision = address.repo, address.revision
        self.token = os.environ.get("HF_TOKEN") or False

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        with hub_place(self.location):
            there, parent = self._listing()
            wanted = {BUNDLE + file.name: file for file in publication.files}
            missing = {name: file for name, file in wanted.items() if not _is_same(file, there.get(name))}
            stale = sorted(name for name in there if name.startswith(BUNDLE) and name not in wanted)
            if not missing and not stale:
                return Outcome([], 0)
            manifest = BUNDLE + MANIFEST_FILE
            if manifest in there and manifest in missing and not replace:
                theirs = sha256_file(self._downloaded(manifest, parent))
                raise another_bundle(self.location, theirs, publication.bundle.bundle_id)
            if parent is None:
                self._api().create_repo(self.repo, private=True)
            self._commit(publication, missing, stale, parent)
        note = "; the repository was made, and is private" if parent is None else ""
        return Outcome(list(missing), sum(file.size_bytes for file in missing.values()), stale, note)

    def pull(self, folder: Path) -> None:
        with hub_place(self.location):
            there, parent = self._listing()
            names = [name for name in there if name.startswith(BUNDLE)]
            if BUNDLE + MANIFEST_FILE not in names:
                raise no_bundle(self.location, f"no {BUNDLE}{MANIFEST_FILE}" if parent else "no such repository")
            for name in names:
                path = inside(folder, name.removeprefix(BUNDLE), self.location)
                path.parent.mkdir(parents=True, exist_ok=True)
                copy_file(str(self._downloaded(name, parent)), str(path))

    def _downloaded(self, name: str, commit: str | None) -> Path:
        """A file in the library's cache."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.repo, name, revision=commit, token=self.token))

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(token=self.token)

    def _listing(self) -> tuple[dict[str, Any], str | None]:
        """Every file by name, and the commit they are of; None where there is no such repository."""
        from huggingface_hub.errors import RepositoryNotFoundError

        api = self._api()
        try:
            commit = api.model_info(self.repo, revision=self.revision).sha
        except RepositoryNotFoundError:
            return {}, None
        entries = api.list_repo_tree(self.repo, recursive=True, revision=commit)
        return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}, commit

    def _commit(
        self, publication: Publication, missing: dict[str, PublishedFile], stale: list[str], parent: str | None
    ) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        card = model_card(publication.bundle, self.repo).encode()
        operations: list[Any] = [CommitOperationAdd(name, str(file.path)) for name, file in missing.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        self._api().create_commit(
            self.repo,
            [*operations, CommitOperationAdd(CARD, card)],
            commit_message=f"Publish bundle {publication.bundle.bundle_id[:12]}",
            revision=self.revision,
            parent_commit=parent,
        )


@contextmanager
def hub_place(location: str) -> Iterator[None]:
    """The library's exceptions as one line without a token."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with place_errors(location), quiet_library():
            yield
    except EnginewrightError as error:
        refusal = next((link for link in causes(error) if isinstance(link, HfHubHTTPError)), None)
        if refusal is None:
            raise
        status = refusal.response.status_code
        if status in (401, 403):
            token = "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "there is no token: set HF_TOKEN"
            raise EnginewrightError(
                f"{location}: the Hub refuses (HTTP {status}; {token}); use one that may write there"
            ) from None
        raise EnginewrightError(f"{location}: the Hub answers HTTP {status} ({reason_of(refusal)}); {AGAIN}") from None


def _is_same(file: PublishedFile, there: Any) -> bool:
    """Whether the Hub's entry has the file's content: it gives a sha256 for Git LFS files, git's own id for others."""
    if there is None or there.size != file.size_bytes:
        return False
    return bool(there.lfs.sha256 == file.sha256 if there.lfs else there.blob_id == git_blob_id(file.path))
