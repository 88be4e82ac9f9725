"""A build that is killed at any moment loses nothing: the next one gives the same bundle and closes its runs.

The moments are drawn with a fixed seed: some in time, over the whole build, some between the steps of publication,
which are too short for a clock to hit. The default suite tries a few, the slow one fifty.
"""

import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.cache import Entry
from pipelines.loading import load_config
from pipelines.tracking_store import Store
from runtime.formats.bundle import open_bundle
from tests.pipelines.fork_server import Ended, ForkServer, Job
from tests.pipelines.running_stages import STAGES
from tests.pipelines.tiny_models import make_hf_folder

SEED = 20_240_601
SETTINGS = ["experiment=smoke", "precision=fp32", "bench.baseline=false"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("models") / "tiny", hidden=32, max_len=1024)


@pytest.fixture(scope="module")
def store_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an empty MLflow store, whose tables take seconds to make."""
    root = tmp_path_factory.mktemp("store")
    config = load_config([f"paths.root={root}"])
    store = Store(config.tracking, config.paths)
    store.client.rename_experiment(store.experiment_id, "unused")  # it knows the folder of its artifacts
    return root


@dataclass(frozen=True)
class Site:
    """Where one model is built, again and again, each time in a new home."""

    server: ForkServer
    model: Path
    store_home: Path
    folder: Path

    def home(self, name: str) -> Path:
        return shutil.copytree(self.store_home, self.folder / name)

    def job(self, home: Path) -> Job:
        arguments = [f"model={self.model}", *SETTINGS]
        return Job(arguments, {"ENGINEWRIGHT_HOME": str(home)}, f"{home}.log")

    def build(self, home: Path) -> Ended:
        (ended,) = self.server.run(self.job(home))
        assert ended.code == 0, ended.stderr
        return ended


@pytest.fixture
def site(fork_server: ForkServer, model: Path, store_home: Path, tmp_path: Path) -> Site:
    return Site(fork_server, model, store_home, tmp_path)


def runs_of(home: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{home}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("enginewright")
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def rows(home: Path, query: str) -> list[tuple[str, ...]]:
    """Straight from the database: a client of MLflow takes longer to open than a build."""
    with closing(sqlite3.connect(home / "mlflow/mlflow.db")) as database:
        return list(database.execute(query))


def states_of(home: Path) -> dict[str, str]:
    return {row[0]: row[1] for row in rows(home, "select run_uuid, status from runs")}


def entries_of(home: Path) -> list[Path]:
    """Whatever lies in the cache but locks."""
    return sorted(path for path in (home / "cache").glob("*/*") if path.suffix != ".lock")


def check_whole(home: Path, bundle: str) -> None:
    """After a kill and a build: one bundle, one whole artifact for each stage, and nothing else."""
    entries = entries_of(home)
    assert [folder.parent.name for folder in entries] == sorted(STAGES)
    for folder in entries:
        metadata = Entry(folder).load()
        assert metadata is not None, folder
        assert Entry(folder).damaged_files(metadata) == []
    assert sorted(path.name for path in (home / "bundles").iterdir()) == sorted([".lock", "latest", bundle])
    open_bundle(home / "bundles/latest")
    assert not (home / "failed").exists()
    assert set(states_of(home).values()) <= {"FINISHED", "KILLED"}
    assert len(rows(home, "select model_id from logged_models")) == 1


def kill(site: Site, home: Path, share: float, in_time: bool, whole: Ended) -> Path:
    """Kill a build in a new home after a share of its time, or of its steps; sooner where it was faster than that."""
    while True:
        site.home(home.name)
        moment = {"kill_after_s": share * whole.seconds} if in_time else {"kill_at_step": int(share * whole.steps)}
        (ended,) = site.server.run(replace(site.job(home), **moment))
        if ended.code == -9:
            return home
        assert ended.code == 0, ended.stderr
        shutil.rmtree(home)
        share /= 2


def kill_and_build_again(site: Site, num_in_time: int, num_in_steps: int) -> None:
    whole = site.build(site.home("whole"))
    bundle = (site.folder / "whole/bundles/latest").resolve().name
    check_whole(site.folder / "whole", bundle)
    chance = random.Random(SEED)
    orphans = 0
    for number in range(num_in_time + num_in_steps):
        share, in_time = chance.random(), number < num_in_time
        home = kill(site, site.folder / f"home-{number}", share, in_time, whole)
        left_running = {run_id for run_id, state in states_of(home).items() if state == "RUNNING"}
        site.build(home)
        try:
            check_whole(home, bundle)
            assert {run_id for run_id, state in states_of(home).items() if state == "KILLED"} == left_running
        except AssertionError as error:
            error.add_note(f"killed after {share:.3f} of its {'time' if in_time else 'steps'}; home {home}")
            raise
        orphans += len(left_running)
        shutil.rmtree(home)
    assert orphans > 0


def test_a_build_killed_at_a_few_moments_is_taken_up_again(site: Site) -> None:
    kill_and_build_again(site, num_in_time=2, num_in_steps=4)


@pytest.mark.slow
def test_a_build_killed_at_fifty_moments_is_taken_up_again(site: Site) -> None:
    kill_and_build_again(site, num_in_time=25, num_in_steps=25)


def test_two_builds_of_one_thing_at_once_do_the_work_once(site: Site) -> None:
    home = site.home("shared")
    jobs = [replace(site.job(home), log=f"{home}-{number}.log") for number in range(2)]
    both = site.server.run(*jobs)
    assert [ended.code for ended in both] == [0, 0], [ended.stderr for ended in both]
    for stage in STAGES:
        verbs = sorted(line for ended in both for line in ended.stderr.splitlines() if line.startswith(f"{stage}: "))
        assert [verb.partition(" in ")[0] for verb in verbs] == [
            f"{stage}: {verb}" for verb in ("cached", "done", "started")
        ]
    runs = runs_of(home)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for stage in STAGES:
        made, linked = sorted(
            (run for run in runs if run.data.tags["stage"] == stage), key=lambda run: run.data.tags["cached"]
        )
        assert (made.data.tags["cached"], linked.data.tags["cached"]) == ("false", "true")
        assert linked.data.tags["made_by_run"] == made.info.run_id
        assert linked.data.tags["mlflow.parentRunId"] != made.data.tags["mlflow.parentRunId"]
    builds = [run for run in runs if run.data.tags["stage"] == "build"]
    assert len(builds) == 2
    assert builds[0].data.metrics == builds[1].data.metrics
    assert len([path for path in (home / "bundles").glob("*/manifest.json") if path.parent.name != "latest"]) == 1
