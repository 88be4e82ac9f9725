"""What is recorded of a build in MLflow: a run for the build, a nested run for each stage.

A store that cannot be used stops the build before any work. One that breaks later does not: see tracking_store.py.
MLflow is imported on first use, as that alone takes longer than a fully cached build.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.cache import Metadata
from pipelines.config import BuildConfig
from pipelines.plain import flattened, plain
from pipelines.provenance import environment_tags
from pipelines.tracking_store import Store

LOGGED_SUFFIXES = (".json", ".jsonl", ".png", ".log", ".txt")
MAX_LOGGED_BYTES = 4 * 2**20
Curves = Mapping[str, Sequence[tuple[int, float]]]  # by name: steps and values


@dataclass(frozen=True)
class Engine:
    """A new bundle, with the figures it was verified and measured with."""

    name: str
    bundle_id: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


class StageRun(Protocol):
    """The record of one stage that is being built."""

    run_id: str

    def published(self, metadata: Metadata, folder: Path, curves: Curves) -> None:
        """Close the record with the outcome; `folder` is the artifact's, with its log."""

    def failed(self, error: BaseException, kept: Path | None) -> None:
        """Close the record with the exception, and the folder of the log and report where they were kept."""


class Tracker(Protocol):
    """The record of one build."""

    def stage_started(self, stage: str, key: str, config: Any) -> StageRun: ...

    def stage_cached(self, stage: str, metadata: Metadata) -> None: ...

    def engine_packaged(self, engine: Engine, package: Metadata) -> None:
        """Enter an engine among the tracked models unless it is there: its build may have been killed before it did."""


class NoRun:
    run_id = ""

    def published(self, metadata: Metadata, folder: Path, curves: Curves) -> None: ...

    def failed(self, error: BaseException, kept: Path | None) -> None: ...


class NoTracker:
    """tracking=off."""

    def stage_started(self, stage: str, key: str, config: Any) -> StageRun:
        return NoRun()

    def stage_cached(self, stage: str, metadata: Metadata) -> None: ...

    def engine_packaged(self, engine: Engine, package: Metadata) -> None: ...


class MlflowStageRun:
    def __init__(self, store: Store, run_id: str, parent_id: str, stage: str) -> None:
        self.store, self.run_id, self.parent_id, self.stage = store, run_id, parent_id, stage

    def published(self, metadata: Metadata, folder: Path, curves: Curves) -> None:
        self.store.log(self.run_id, metrics={**metadata.metrics, "stage_seconds": metadata.seconds})
        self.store.log_curves(self.run_id, curves)
        self.store.log(self.run_id, tags={"artifact_digest": metadata.digest, "summary": metadata.summary})
        self.store.log_files(self.run_id, [*small_files(folder / "content"), *small_files(folder)])
        resources = metadata.made_from["resources"].items()
        self.store.log_datasets(self.run_id, {name: digest for name, digest in resources if not is_code(name)})
        self.store.log(self.parent_id, metrics=prefixed(self.stage, metadata))
        self.store.end(self.run_id, "FINISHED")

    def failed(self, error: BaseException, kept: Path | None) -> None:
        if kept is not None:
            self.store.log_files(self.run_id, [*small_files(kept / "content"), *small_files(kept)])
        close_failed(self.store, self.run_id, error)


class MlflowTracker:
    def __init__(self, store: Store, run_id: str, tags: Mapping[str, str]) -> None:
        self.store, self.run_id, self.tags = store, run_id, tags

    def stage_started(self, stage: str, key: str, config: Any) -> StageRun:
        run_id = self.store.start(stage, {**self.tags, "stage": stage, "key": key, "cached": "false"}, self.run_id)
        self.store.log(run_id, params=dict(flattened(config)))
        return MlflowStageRun(self.store, run_id, self.run_id, stage)

    def stage_cached(self, stage: str, metadata: Metadata) -> None:
        tags = {"stage": stage, "key": metadata.key, "cached": "true", "artifact_digest": metadata.digest}
        if metadata.run_id:
            link = f"#/experiments/{self.store.experiment_id}/runs/{metadata.run_id}"
            tags |= {"made_by_run": metadata.run_id, "mlflow.note.content": f"Cached: [the run that made it]({link})"}
        run_id = self.store.start(stage, {**self.tags, **tags}, self.run_id)
        self.store.log(self.run_id, metrics=prefixed(stage, metadata))
        self.store.end(run_id, "FINISHED")

    def engine_packaged(self, engine: Engine, package: Metadata) -> None:
        tags = {"bundle_id": engine.bundle_id}
        if package.run_id and not self.store.has_model(tags):
            self.store.create_model(engine.name, package.run_id, engine.params, tags, engine.metrics)


@contextmanager
def open_tracker(config: BuildConfig) -> Iterator[Tracker]:
    """Record one build from its start to its end, after closing the records of builds that were killed.

    Raises:
        EnginewrightError: the store cannot be reached or refuses; names it and what to write instead.
    """
    if not config.tracking.enabled:
        yield NoTracker()
        return
    store = Store(config.tracking, config.paths)
    store.close_lost()
    store.close_orphans()
    tags = environment_tags()
    run_id = store.start(config.package.name, {**tags, "stage": "build"})
    store.under_way = True
    status = "FINISHED"
    try:
        settings = plain(config)
        store.log(run_id, params=dict(flattened(settings)))
        store.log_dict(run_id, settings, "config.json")
        yield MlflowTracker(store, run_id, tags)
        store.end(run_id, status)
    except BaseException as error:
        status = close_failed(store, run_id, error)
        raise
    finally:
        store.remember_loss(status)


def close_failed(store: Store, run_id: str, error: BaseException) -> str:
    """End a run with its exception, and give the run's state; an interrupted build is KILLED, not FAILED."""
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    store.log(run_id, tags={"exception": f"{type(error).__name__}: {error}"})
    store.log_text(run_id, "".join(traceback.format_exception(error)), "traceback.txt")
    store.end(run_id, status)
    return status


def prefixed(stage: str, metadata: Metadata) -> dict[str, float]:
    """A stage's figures as the build's run shows them, to compare builds in one table."""
    return {f"{stage}/{name}": value for name, value in metadata.metrics.items()}


def is_code(resource: str) -> bool:
    """Whether a file that a stage reads is a kernel's source, not data that it worked on."""
    return resource.endswith((".cu", ".cuh"))


def small_files(folder: Path) -> list[Path]:
    """What a person reads: reports, plots, logs, manifests; not weights."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.suffix in LOGGED_SUFFIXES and path.stat().st_size <= MAX_LOGGED_BYTES]
