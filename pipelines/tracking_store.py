"""MLflow's client, reduced to what tracking needs: one experiment, explicit run ids, no global state.

A failure before the build's own run is open is one EnginewrightError that names the store: nothing has been done yet. A
later one is a warning, once: the build goes on without its record, and what the store missed is kept (tracking_loss.py)
and told to it by the next build.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from filelock import FileLock

from pipelines.config import PathsConfig, TrackingConfig
from pipelines.provenance import environment_tags, is_running
from pipelines.redaction import redacted, redacted_text
from pipelines.tracking_loss import Loss, forget, recall, remember
from runtime.errors import EnginewrightError

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)
MAX_REASON_CHARS = 200
TEXT_SUFFIXES = (".json", ".jsonl", ".log", ".txt")
MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password that the URL has
    # By default it goes on for minutes before it says that a server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
MAX_DIGEST_CHARS = 36  # MLflow's limit for a dataset
BATCH = 100  # MLflow's limit of params and tags in one request


def reported(method: Callable[Concatenate["Store", P], R]) -> Callable[Concatenate["Store", P], R]:
    """Turn whatever the store raises into one line with its name and the remedy; or once a build is under way, into a
    warning and an empty answer."""

    @wraps(method)
    def wrapped(self: "Store", *args: P.args, **kwargs: P.kwargs) -> R:
        if self.lost:
            return cast(R, "")
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            reason = redacted(str(error).strip().partition("\n")[0])[:MAX_REASON_CHARS]
            line = f"tracking store {redacted(self.uri)} failed: {reason}"
            if not self.under_way:
                raise EnginewrightError(f"{line}; set another tracking.uri or tracking=off") from error
            self.lost = line
            log.warning("%s; the build goes on, and the rest of it is not recorded", line)
            return cast(R, "")

    return cast(Callable[Concatenate["Store", P], R], wrapped)


class Store:
    """One MLflow store and experiment."""

    def __init__(self, tracking: TrackingConfig, paths: PathsConfig) -> None:
        self.uri = tracking.uri
        self.experiment = tracking.experiment
        self.paths = paths
        self.under_way = False  # whether a build is being recorded: its work is worth more than its record
        self.lost = ""  # why the rest of it is not
        self.open_runs: list[str] = []
        self.connect()

    @reported
    def connect(self) -> None:
        for name, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes

        folder = self.paths.tracking
        folder.mkdir(parents=True, exist_ok=True)
        self.mlflow = mlflow
        # Two first connections to a new database would both create its tables.
        with FileLock(folder / "store.lock"):
            mlflow.set_tracking_uri(self.uri)
            self.client = MlflowClient(tracking_uri=self.uri)
            self.experiment_id = self.find_experiment(folder)

    def find_experiment(self, folder: Path) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        # A server has its own place for artifacts; a local database would take the current folder.
        location = (folder / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
        return str(self.client.create_experiment(self.experiment, artifact_location=location))

    @reported
    def start(self, name: str, tags: Mapping[str, str], parent_id: str = "") -> str:
        nesting = {"mlflow.parentRunId": parent_id} if parent_id else {}
        everything = {"mlflow.source.name": "enginewright", "mlflow.source.type": "LOCAL", **nesting, **tags}
        run = self.client.create_run(self.experiment_id, tags=redacted(everything), run_name=name)
        self.open_runs.append(run_id := str(run.info.run_id))
        return run_id

    @reported
    def end(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status=status)
        self.open_runs.remove(run_id)

    @reported
    def log(
        self,
        run_id: str,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        figures = [Metric(name, float(value), now, 0, model_id=model_id) for name, value in (metrics or {}).items()]
        settings = [Param(name, str(value)) for name, value in redacted(params or {}).items()]
        labels = [RunTag(name, value) for name, value in redacted(tags or {}).items()]
        for first in range(0, max(len(figures), len(settings), len(labels)), BATCH):
            part = slice(first, first + BATCH)
            self.client.log_batch(run_id, metrics=figures[part], params=settings[part], tags=labels[part])

    @reported
    def log_curves(self, run_id: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Record figures of a run that change with its steps."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, float(y), now, step) for name, curve in curves.items() for step, y in curve]
        for first in range(0, len(points), BATCH):
            self.client.log_batch(run_id, metrics=points[first : first + BATCH])

    @reported
    def log_files(self, run_id: str, files: Sequence[Path]) -> None:
        for path in files:
            shown = path.read_text(encoding="utf-8") if path.suffix in TEXT_SUFFIXES else ""
            if (clean := redacted_text(shown)) != shown:
                self.client.log_text(run_id, clean, path.name)
            else:
                self.client.log_artifact(run_id, str(path))

    @reported
    def log_dict(self, run_id: str, values: Any, name: str) -> None:
        self.client.log_dict(run_id, redacted(values), name)

    @reported
    def log_text(self, run_id: str, text: str, name: str) -> None:
        self.client.log_text(run_id, redacted_text(text), name)

    @reported
    def log_datasets(self, run_id: str, digests: Mapping[str, str]) -> None:
        """Record the shipped files that a run evaluated on, by name and sha256."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = [InputTag(key="mlflow.data.context", value="eval")]
        inputs = [
            DatasetInput(Dataset(name, digest[:MAX_DIGEST_CHARS], "shipped", f"pipelines/data/{name}"), context)
            for name, digest in digests.items()
        ]
        if inputs:
            self.client.log_inputs(run_id, datasets=inputs)

    @reported
    def has_model(self, tags: Mapping[str, str]) -> bool:
        """Whether an engine with these tags is recorded."""
        query = " AND ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        return len(self.client.search_logged_models([self.experiment_id], query, max_results=1)) > 0

    @reported
    def create_model(
        self, name: str, run_id: str, params: Mapping[str, str], tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> str:
        """Record an engine as a LoggedModel whose files stay outside MLflow, with its figures."""
        model = self.mlflow.create_external_model(
            name=name.replace(".", "-"),  # MLflow takes no dots here
            model_type="engine",
            params=dict(params),
            tags=dict(tags),
            source_run_id=run_id,
            experiment_id=self.experiment_id,
        )
        self.log(run_id, metrics=metrics, model_id=model.model_id)
        return str(model.model_id)

    def remember_loss(self, status: str) -> None:
        """Keep what the store missed of a build that ended with `status`."""
        if self.lost:
            remember(self.paths.tracking, Loss(redacted(self.uri), self.lost, self.open_runs, status))

    @reported
    def close_lost(self) -> None:
        """Close the runs of builds that went on without the store, as they ended."""
        losses = recall(self.paths.tracking, redacted(self.uri))
        for loss in losses:
            for run_id in loss.run_ids:
                self.client.set_tag(run_id, "tracking_lost", loss.reason)
                self.client.set_terminated(run_id, status=loss.status)
        if losses:
            forget(self.paths.tracking, redacted(self.uri))

    @reported
    def close_orphans(self) -> None:
        """Close this host's runs whose process is gone: it was killed before it could."""
        host = environment_tags()["host"].replace("'", "")
        query = f"attributes.status = 'RUNNING' and tags.host = '{host}'"
        for run in self.client.search_runs([self.experiment_id], query, max_results=1000):
            tags = run.data.tags
            if not is_running(int(tags.get("pid", 0)), float(tags.get("pid_started", 0))):
                self.client.set_terminated(run.info.run_id, status="KILLED")
