"""What a build leaves in a real MLflow store: the tree of runs, its figures, and the truth about failures."""

import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from pipelines.build import Build, run_build
from pipelines.config import BuildConfig
from pipelines.loading import load_config
from pipelines.provenance import environment_tags
from pipelines.tracking_store import Store
from runtime.errors import EnginewrightError
from tests.pipelines.running_stages import STAGES

TOYS = "tests.pipelines.toy_engine"


@pytest.fixture
def root(tmp_path: Path, empty_store: Path) -> Path:
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow/mlflow.db")
    return tmp_path


def config_of(root: Path, overrides: Sequence[str] = ()) -> BuildConfig:
    return load_config([f"paths.root={root}", "target=[cpu]", *overrides])


def build(root: Path, *overrides: str) -> Build:
    return run_build(config_of(root, overrides), Console(file=io.StringIO()), TOYS)


def runs_of(root: Path) -> dict[str, Run]:
    """The runs of the latest build, by name."""
    client = MlflowClient(f"sqlite:///{root}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("enginewright")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return {"build": parent, **{run.info.run_name: run for run in reversed(nested)}}


def artifacts(root: Path, run: Run) -> set[str]:
    client = MlflowClient(f"sqlite:///{root}/mlflow/mlflow.db")
    return {item.path for item in client.list_artifacts(run.info.run_id)}


def test_a_build_is_a_run_with_a_nested_run_for_each_stage(root: Path) -> None:
    built = build(root, "verify.num_prompts=3")
    runs = runs_of(root)
    assert set(runs) == {"build", *STAGES}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["build"].data.params["verify.num_prompts"] == "3"
    assert runs["build"].data.metrics["bench/bench_toy_ms"] == 1.5
    assert artifacts(root, runs["build"]) == {"config.json"}
    verify = runs["verify"]
    assert verify.data.params["num_prompts"] == "3"
    assert verify.data.metrics.keys() == {"verify_toy_ms", "stage_seconds"}
    assert artifacts(root, verify) == {"artifact.json", "report.json", "stage.log"}
    assert verify.data.tags["artifact_digest"] == built.results["verify"].artifact.digest
    assert {"host", "pid", "python", "torch", "transformers", "cpu"} <= verify.data.tags.keys()
    assert (root / "mlflow/artifacts").is_dir()


def test_a_cached_stage_links_to_the_run_that_made_it(root: Path) -> None:
    build(root)
    first = runs_of(root)
    again = build(root)
    second = runs_of(root)
    assert all(result.cached for result in again.results.values())
    for stage in STAGES:
        tags = second[stage].data.tags
        assert (tags["cached"], tags["made_by_run"]) == ("true", first[stage].info.run_id)
        assert first[stage].info.run_id in tags["mlflow.note.content"]
    assert second["build"].data.metrics == first["build"].data.metrics


def test_a_failed_stage_fails_its_run_and_the_builds(root: Path) -> None:
    with pytest.raises(EnginewrightError, match="verify: greedy agreement"):
        build(root, "verify.num_prompts=13")
    runs = runs_of(root)
    assert set(runs) == {"build", "fetch", "convert", "draft", "compile", "verify"}
    assert [runs[name].info.status for name in ("build", "compile", "verify")] == ["FAILED", "FINISHED", "FAILED"]
    assert "greedy agreement 0.1 is below 0.95" in runs["verify"].data.tags["exception"]
    assert artifacts(root, runs["verify"]) == {"report.json", "stage.log", "traceback.txt"}
    assert not (root / "bundles").exists()


def test_a_new_engine_is_a_model_with_its_figures(root: Path) -> None:
    built = build(root)
    build(root)
    client = MlflowClient(f"sqlite:///{root}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("enginewright")
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert (model.name, str(model.status), model.model_type) == ("smollm2-135m-bf16", "READY", "engine")
    assert {metric.key for metric in model.metrics} == {"verify/verify_toy_ms", "bench/bench_toy_ms"}
    assert built.bundle.name == f"smollm2-135m-bf16-{model.tags['bundle_id'][:12]}"
    assert model.source_run_id == built.results["package"].metadata.run_id


def test_runs_of_killed_builds_are_closed_and_running_ones_are_not(root: Path) -> None:
    config = config_of(root)
    store = Store(config.tracking, config.paths)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    tags = environment_tags()
    alive = store.start("alive", tags)
    orphan = store.start("orphan", {**tags, "pid": str(gone.pid)})
    reused = store.start("reused", {**tags, "pid_started": str(psutil.Process().create_time() - 1000)})
    elsewhere = store.start("elsewhere", {**tags, "host": "another", "pid": str(gone.pid)})
    build(root)
    states = {run_id: store.client.get_run(run_id).info.status for run_id in (alive, orphan, reused, elsewhere)}
    assert list(states.values()) == ["RUNNING", "KILLED", "KILLED", "RUNNING"]


def test_a_store_that_fails_stops_the_build_before_any_work_and_hides_passwords(root: Path) -> None:
    with pytest.raises(EnginewrightError) as caught:
        build(root, "tracking.uri='nosuch://me:secret@host/x'")
    assert str(caught.value).startswith("tracking store nosuch://***@host/x failed: ")
    assert str(caught.value).endswith("; set another tracking.uri or tracking=off")
    assert "secret" not in str(caught.value)
    assert not (root / "cache").exists()


def test_a_store_that_fails_later_is_told_of_once_and_costs_no_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log_artifact = MlflowClient.log_artifact

    def refuse_logs(client: MlflowClient, run_id: str, path: str, *folder: str) -> None:
        if path.endswith("stage.log"):
            raise OSError("disk full")
        log_artifact(client, run_id, path, *folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse_logs)
    assert (build(root).bundle / "manifest.json").is_file()
    warnings = [record.getMessage() for record in caplog.records if record.name == "pipelines.tracking_store"]
    assert [warning.partition(" failed: ")[2] for warning in warnings] == [
        "disk full; the build goes on, and the rest of it is not recorded"
    ]
    monkeypatch.undo()
    assert all(result.cached for result in build(root).results.values())


def test_without_tracking_nothing_is_written(root: Path) -> None:
    build(root, "tracking=off")
    assert not list((root / "mlflow").glob("artifacts*"))
