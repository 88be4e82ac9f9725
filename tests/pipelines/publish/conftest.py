"""Two bundles to publish: the golden one, and another."""

import shutil
from pathlib import Path

import pytest

from pipelines.config import PathsConfig, TrackingConfig
from pipelines.publish.publication import Publication, read_publication
from runtime.formats.manifest import write_manifest
from tests.runtime.golden import make
from tests.runtime.test_bundle import make_bundle

GOLDEN = Path(make.__file__).parent / "schema-1/bundle"


@pytest.fixture(scope="session")
def golden() -> Publication:
    return read_publication(GOLDEN)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, golden: Publication) -> Publication:
    """Of the same name."""
    folder = tmp_path_factory.mktemp("other") / "bundle"
    make_bundle(folder)
    write_manifest(folder, {"name": golden.name}, {"cpu": {"arch": "any"}}, {"source": "random"})
    return read_publication(folder)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGINEWRIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture
def store_settings(tmp_path: Path, empty_store: Path) -> tuple[TrackingConfig, PathsConfig]:
    """An empty local store; its database and artifacts are in `tmp_path`/home/mlflow, as the command line's are."""
    (tmp_path / "home/mlflow").mkdir(parents=True)
    shutil.copy(empty_store, tmp_path / "home/mlflow/mlflow.db")
    return TrackingConfig(uri=f"sqlite:///{tmp_path}/home/mlflow/mlflow.db"), PathsConfig(root=str(tmp_path / "home"))
