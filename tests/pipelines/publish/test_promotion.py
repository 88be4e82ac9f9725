"""The champion moves only when every gate passes, and back again; what was judged is in the store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import PathsConfig, PromoteConfig, TrackingConfig
from pipelines.enginewright import main
from pipelines.hardware import fingerprint
from pipelines.publish.gates import Evidence, judge
from pipelines.publish.mlflow_registry import MlflowRegistry
from pipelines.publish.promotion import Registry, Verdict
from pipelines.publish.publication import read_publication
from runtime.errors import EnginewrightError
from runtime.formats.manifest import write_manifest
from tests.pipelines.publish.conftest import GOLDEN

NAME = "engine"
HERE = fingerprint()
Settings = tuple[TrackingConfig, PathsConfig]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a bundle that says of itself what a test wants; each call gives another id."""

    def made(
        speed: float = 100.0, accepted: float | None = 2.0, passed: bool = True, hardware: Any = HERE,
        measured: bool = True,
    ) -> Path:  # fmt: skip
        folder = tmp_path / f"bundle-{len(list(tmp_path.glob('bundle-*')))}"
        shutil.copytree(GOLDEN, folder)
        report = json.loads((folder / "attestations/verify/report.json").read_text())
        report["engine"]["passed"], report["hardware"] = passed, hardware
        (folder / "attestations/verify/report.json").write_text(json.dumps(report))
        summary = json.loads((folder / "attestations/bench/summary.json").read_text())
        summary["hardware"] = hardware
        for row in summary["rows"]:
            row["median"] = speed
        rows = [{"drafting": "off", "kind": "all", "accepted_length": 1.0},
                {"drafting": "redrafter", "kind": "all", "accepted_length": accepted},
                {"drafting": "ngram", "kind": "all", "accepted_length": 1.1}]  # fmt: skip
        summary["speculation"] = rows if accepted is not None else []
        content = summary if measured else {"not_run": "built with bench=off"}
        (folder / "attestations/bench/summary.json").write_text(json.dumps(content))
        write_manifest(folder, {"name": NAME}, {"cpu": {}}, {"number": folder.name})
        return folder

    return made


@pytest.fixture
def registry(store_settings: Settings) -> Registry:
    return Registry(*store_settings)


def publish(settings: Settings, folder: Path) -> None:
    MlflowRegistry("", *settings).publish(read_publication(folder), False)


def champion(registry: Registry) -> str:
    return str(registry.client.get_registered_model(NAME).aliases.get("champion", ""))


def judged(candidate: Path, champion: Path | None, **settings: Any) -> dict[str, bool]:
    """Every gate's name and whether it passed."""
    evidence = Evidence.read(champion) if champion else None
    gates = judge(Evidence.read(candidate), evidence, HERE, PromoteConfig(**settings))
    return {gate.name: gate.passed for gate in gates}


DECODE = "decode cpu tokens/s, batch 1, prompt 16"


def test_without_a_champion_verification_on_a_machine_like_this_decides(make: Make) -> None:
    assert judged(make(), None) == {"verify cpu": True}
    assert judged(make(measured=False), None) == {"verify cpu": True}
    assert judged(make(passed=False), None) == {"verify cpu": False}
    assert judged(make(hardware={**HERE, "flags": ["other"]}), None) == {"verify cpu": False}
    assert judged(make(hardware=None), None) == {"verify cpu": False}
    assert judged(make(hardware={**HERE, "cores": 99, "gpus": ["a GPU"]}), None) == {"verify cpu": True}


def test_a_figure_may_be_worse_by_its_tolerance_and_no_more(make: Make) -> None:
    best = make(speed=100.0, accepted=2.0)
    assert judged(make(95.1, 1.91), best) == {"verify cpu": True, "accepted length": True, DECODE: True}
    assert judged(make(94.9, 2.0), best)[DECODE] is False
    assert judged(make(100.0, 1.89), best)["accepted length"] is False
    assert judged(make(60.0, 1.2), best, max_decode_loss=0.5, max_acceptance_loss=0.5) == {
        "verify cpu": True, "accepted length": True, DECODE: True}  # fmt: skip


def test_what_the_champion_has_and_the_candidate_lacks_fails(make: Make) -> None:
    best = make()
    assert judged(make(measured=False), best) == {"verify cpu": True, "accepted length": False, "decode cpu": False}
    assert judged(make(accepted=None), best)["accepted length"] is False
    assert all(judged(best, make(measured=False)).values())


def test_speeds_of_two_machines_are_not_compared_unless_that_is_allowed(make: Make) -> None:
    best = make(hardware={**HERE, "cores": 64})
    assert judged(make(1000.0), best)["decode cpu"] is False
    assert judged(make(1.0), best, other_hardware=True)["decode cpu"] is True


def test_the_engines_that_run_here_count_unless_others_are_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    write_manifest(folder, {"name": NAME}, {"cpu": {}, "cuda": {}}, {})
    monkeypatch.setattr("pipelines.publish.gates.why_not_run", lambda target: "no GPU" if target == "cuda" else "")
    gates = judge(Evidence.read(folder), None, HERE, PromoteConfig())
    assert [(gate.name, gate.bound == "not judged here", gate.passed) for gate in gates] == [
        ("verify cpu", False, True), ("verify cuda", True, True)]  # fmt: skip
    monkeypatch.setattr("pipelines.publish.gates.why_not_run", lambda target: "")
    assert judged(folder, None) == {"verify cpu": True, "verify cuda": False}
    assert judged(folder, None, targets=("cpu",)) == {"verify cpu": True, "verify cuda": True}
    write_manifest(folder, {"name": NAME}, {"cuda": {}}, {})
    monkeypatch.setattr("pipelines.publish.gates.why_not_run", lambda target: "no GPU")
    assert judged(folder, None) == {"verify cuda": False}


def test_an_engine_counts_as_verified_where_its_gpus_are_those_of_the_report(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make()
    write_manifest(folder, {"name": NAME}, {"cuda": {}}, {})
    report = json.loads((folder / "attestations/verify/report.json").read_text())
    report["hardware"] = {**HERE, "gpus": ["a GPU"]}
    (folder / "attestations/verify_cuda").mkdir()
    (folder / "attestations/verify_cuda/report.json").write_text(json.dumps(report))
    monkeypatch.setattr("pipelines.publish.gates.why_not_run", lambda target: "")
    there = Evidence.read(folder)
    assert [gate.passed for gate in judge(there, None, {**HERE, "gpus": ["a GPU"]}, PromoteConfig())] == [True]
    assert [gate.passed for gate in judge(there, None, {**HERE, "gpus": ["another"]}, PromoteConfig())] == [False]


def test_the_champion_moves_when_all_gates_pass_and_rolls_back(
    make: Make, registry: Registry, store_settings: Settings
) -> None:
    for speed in (100.0, 99.0, 98.0):
        publish(store_settings, make(speed=speed))
        verdict = registry.promote("", "", PromoteConfig())
        assert verdict.passed
    assert champion(registry) == "3"
    assert registry.rollback(NAME).version == "2"
    assert registry.rollback(NAME).version == "1"
    with pytest.raises(EnginewrightError, match="version 1 had no champion before it"):
        registry.rollback(NAME)
    assert champion(registry) == "1"


def test_a_gate_that_fails_moves_nothing_and_is_recorded(
    make: Make, registry: Registry, store_settings: Settings
) -> None:
    publish(store_settings, make(speed=100.0))
    registry.promote(NAME, "", PromoteConfig())
    publish(store_settings, make(speed=50.0))
    verdict = registry.promote(NAME, "", PromoteConfig())
    assert not verdict.passed
    assert champion(registry) == "1"
    recorded = run_of(registry, verdict)
    assert recorded["passed"] == "false"
    assert recorded["champion"] == "1"
    (decode,) = [gate for gate in recorded["gates"] if gate["name"] == DECODE]
    assert decode == {"name": DECODE, "champion": "100.0", "candidate": "50.0", "bound": "at least 95.0",
                      "passed": False}  # fmt: skip


def run_of(registry: Registry, verdict: Verdict) -> dict[str, Any]:
    """gates.json of the run that a version's tag names."""
    tags = registry.client.get_model_version(NAME, verdict.version).tags
    path = registry.client.download_artifacts(tags["promote_run"], "gates.json")
    return json.loads(Path(path).read_text())


def test_the_command_line_prints_the_gates_and_exits_with_1_when_one_fails(
    make: Make, registry: Registry, store_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(store_settings, make(speed=100.0))
    main(["promote"])
    assert "version 1 of engine is the champion (before: none)" in capsys.readouterr().out
    publish(store_settings, make(speed=50.0))
    with pytest.raises(SystemExit, match=r"^error: version 2 of engine is no champion: decode cpu tokens/s, batch 1"):
        main(["promote", "--name", NAME])
    table = capsys.readouterr().out
    assert "FAILED" in table
    assert champion(registry) == "1"
    main(["promote", "--version", "2", "promote.max_decode_loss=0.6"])
    assert champion(registry) == "2"
    main(["rollback"])
    assert "version 1 of engine is the champion again, instead of 2" in capsys.readouterr().out
    assert champion(registry) == "1"


def test_what_cannot_be_promoted_is_named(make: Make, registry: Registry, store_settings: Settings) -> None:
    config = PromoteConfig()
    with pytest.raises(EnginewrightError, match="name a registered model with --name; those with a candidate: none"):
        registry.promote("", "", config)
    with pytest.raises(EnginewrightError, match="mlflow:nothing: no such registered model"):
        registry.promote("nothing", "", config)
    publish(store_settings, make())
    with pytest.raises(EnginewrightError, match=r"has no version 7 that was published here; there are: 1"):
        registry.promote(NAME, "7", config)
    with pytest.raises(EnginewrightError, match="has no champion to roll back from"):
        registry.rollback(NAME)
    registry.promote(NAME, "", config)
    with pytest.raises(EnginewrightError, match="version 1 is the champion already"):
        registry.promote(NAME, "", config)
    with pytest.raises(EnginewrightError, match=r"promote.max_decode_loss is 1.5; it must be a share"):
        PromoteConfig(max_decode_loss=1.5)
