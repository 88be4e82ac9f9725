"""A build publishes its bundle last, each time it runs, and nothing where no place is named."""

import json
from pathlib import Path

import pytest

from pipelines.build import run_publish
from pipelines.cache import Cache, Entry, Metadata
from pipelines.config import CachePolicy
from pipelines.loading import load_config
from pipelines.planning.planner import Earlier, Planner, StagePlan
from pipelines.publish.pulling import pull
from pipelines.runner import StageResult
from pipelines.stage import Artifact
from runtime.errors import EnginewrightError
from tests.pipelines.publish.conftest import GOLDEN
from tests.pipelines.publish.places import contents, place
from tests.pipelines.toy_runner import make_runner

PACKAGE = StageResult(Artifact(GOLDEN, "digest"), Metadata("package", "key", {}), cached=True)


def test_the_stage_runs_in_every_build_and_sends_what_is_missing(tmp_path: Path) -> None:
    config = load_config([f"publish.to=[{tmp_path}/a,'oci:{tmp_path}/b']", f"paths.root={tmp_path}/home"])
    runner = make_runner(tmp_path, tmp_path)
    results = [run_publish(config, runner, PACKAGE)["publish"] for _ in range(3)]
    assert [result.cached for result in results] == [False, False, False]
    assert "0.0 MB sent" not in results[0].metadata.summary
    assert "0.0 MB sent" in results[1].metadata.summary
    pull(place(f"oci:{tmp_path}/b"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "a") == contents(GOLDEN)
    recorded = json.loads((results[2].artifact.path / "published.json").read_text())
    assert recorded["places"] == [f"{tmp_path}/a", f"oci:{tmp_path}/b"]


def test_a_plan_names_the_stage(tmp_path: Path) -> None:
    config = load_config([f"publish.to=[{tmp_path}/a]", f"paths.root={tmp_path}/home"])
    planner = Planner(Cache(tmp_path / "cache"), CachePolicy.on)
    package = StagePlan("package", "cached", "", {}, Earlier(Entry(GOLDEN.parent), PACKAGE.metadata), None, ())
    planned = run_publish(config, planner, package)["publish"]
    assert (planned.outcome, planned.why) == ("build", "runs in every build")
    assert not (tmp_path / "a").exists()


def test_no_place_no_stage() -> None:
    assert run_publish(load_config([]), None, None) == {}


def test_a_place_that_refuses_fails_the_stage(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    config = load_config([f"publish.to=[{tmp_path}/mine]", f"paths.root={tmp_path}/home"])
    with pytest.raises(EnginewrightError, match=r"publish: .*mine: has files that are not of this bundle"):
        run_publish(config, make_runner(tmp_path, tmp_path), PACKAGE)
