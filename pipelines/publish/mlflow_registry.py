"""MLflow's model registry, `mlflow:[<name>]`: the bundle as a logged model that MLflow can serve, and a version of it.

The model is READY, and a version names it, once all its files are there. One bundle has one version, found by its tag
`bundle_id`; the alias `candidate` points at the version published last. promotion.py moves `champion`.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.config import PathsConfig, TrackingConfig
from pipelines.publish.errors import no_bundle, place_errors
from pipelines.publish.folder import inside
from pipelines.publish.mlflow_files import ATTESTATIONS, BUNDLE, bundle_files, model_files
from pipelines.publish.publication import Outcome, Publication, PublishedFile
from pipelines.tracking_store import Store
from runtime.formats.bundle import Bundle
from runtime.formats.digest import sha256_file

CANDIDATE = "candidate"
ID_TAG = "bundle_id"
MODEL_TAG = "model_id"  # the store does not tell it of a version that it made
PUBLISHED_TAG = "published_bundle_id"  # of a logged model; `bundle_id` is on the one that the build recorded


class MlflowRegistry:
    """A registered model; without a name, that of the bundle. `<name>@<alias>` says which version is pulled."""

    def __init__(self, name: str, tracking: TrackingConfig, paths: PathsConfig) -> None:
        self.location = f"mlflow:{name}"
        self.name, _, self.alias = name.partition("@")
        self.tracking, self.paths = tracking, paths

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        name = self.name or publication.name
        with place_errors(self.location):
            store = Store(self.tracking, self.paths)
            found = find_version(store.client, name, publication.bundle.bundle_id)
            if found is None:
                model_id = _begin_model(store, publication)
                with TemporaryDirectory() as made:
                    sent = _send(store, model_id, [*bundle_files(publication), *model_files(publication, Path(made))])
                store.client.finalize_logged_model(model_id, "READY")
                found = _register(store.client, name, model_id, publication.bundle)
            else:
                sent = _send(store, found.tags[MODEL_TAG], bundle_files(publication))
            store.client.set_registered_model_alias(name, CANDIDATE, found.version)
        note = f"; version {found.version} of {name} is {CANDIDATE}"
        return Outcome([file.name for file in sent], sum(file.size_bytes for file in sent), note=note)

    def pull(self, folder: Path) -> None:
        with place_errors(self.location):
            store = Store(self.tracking, self.paths)
            found = store.client.get_model_version_by_alias(self.name, self.alias or CANDIDATE)
            files = listing(store.client, found.tags[MODEL_TAG], BUNDLE.rstrip("/"))
            if not files:
                raise no_bundle(self.location, f"version {found.version} has no {BUNDLE}")
            for name in files:
                inside(folder, name.removeprefix(BUNDLE), self.location)
            download(store, found.tags[MODEL_TAG], BUNDLE.rstrip("/"), folder)


def find_version(client: Any, name: str, bundle_id: str) -> Any | None:
    """The version of a registered model that has this bundle."""
    found = client.search_model_versions(f"name = '{name}' and tag.{ID_TAG} = '{bundle_id}'")
    return found[0] if found else None


def download(store: Store, model_id: str, path: str, folder: Path) -> None:
    """Bring a file, or what is in a folder, of a logged model into a folder here, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        uri = f"{store.client.get_logged_model(model_id).artifact_location}/{path}"
        found = Path(store.mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=temporary))
        for item in [found] if found.is_file() else list(found.iterdir()):
            item.rename(folder / item.name)


def listing(client: Any, model_id: str, folder: str | None = None) -> dict[str, int]:
    """Bytes of every file of a logged model by its path."""
    found: dict[str, int] = {}
    for entry in client.list_logged_model_artifacts(model_id, folder):
        found |= listing(client, model_id, entry.path) if entry.is_dir else {entry.path: int(entry.file_size)}
    return found


def _begin_model(store: Store, publication: Publication) -> str:
    """The id of a logged model without files; one that was begun and never finished goes on."""
    bundle_id = publication.bundle.bundle_id
    query = f"tags.{PUBLISHED_TAG} = '{bundle_id}'"
    begun = store.client.search_logged_models([store.experiment_id], query, max_results=1)
    if begun:
        return str(begun[0].model_id)
    built = store.client.search_logged_models([store.experiment_id], f"tags.{ID_TAG} = '{bundle_id}'", max_results=1)
    model = store.client.create_logged_model(
        store.experiment_id,
        name=publication.name.replace(".", "-"),  # MLflow takes no dots here
        source_run_id=built[0].source_run_id if built else None,
        tags={PUBLISHED_TAG: bundle_id},
        params=dict(built[0].params) if built else {},
        model_type="engine",
    )
    return str(model.model_id)


def _send(store: Store, model_id: str, files: Sequence[PublishedFile]) -> list[PublishedFile]:
    """Upload what is missing or of another size, and attestations that differ, in this order."""
    there = listing(store.client, model_id)
    attested = _attested(store, model_id) if any(name.startswith(ATTESTATIONS) for name in there) else {}
    missing = [
        file
        for file in files
        if there.get(file.name) != file.size_bytes or attested.get(file.name, file.sha256) != file.sha256
    ]
    for file in missing:
        folder = file.name.rpartition("/")[0]
        store.client.log_model_artifact(model_id, str(file.path), folder or None)
    return missing


def _attested(store: Store, model_id: str) -> dict[str, str]:
    """Sha256 of the attestations that a model has, by name."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "there")
        download(store, model_id, ATTESTATIONS.rstrip("/"), folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {ATTESTATIONS + path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def _register(client: Any, name: str, model_id: str, bundle: Bundle) -> Any:
    """A version of the registered model, which is made where it is missing."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {ID_TAG: bundle.bundle_id, MODEL_TAG: model_id}
    return client.create_model_version(name, f"models:/{model_id}", tags=tags, model_id=model_id)
