"""Builds against a real MLflow server: side by side, failing, with secrets, and with a server that goes away."""

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from pipelines.build import Build, run_build
from pipelines.loading import load_config
from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.tracking_loss import LOST_FILE
from runtime.errors import EnginewrightError
from tests.pipelines.conftest import MlflowServer, free_port
from tests.pipelines.fork_server import ForkServer, Job
from tests.pipelines.running_stages import STAGES
from tests.pipelines.toy_engine.common import ToyStage

TOYS = "tests.pipelines.toy_engine"
SECRETS = {
    "HF_TOKEN": "hf_" + "aB3dE5fG7h" * 3,
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}
URI_PASSWORD, SOURCE_PASSWORD, BEARER = "correct-horse", "battery-staple", "zX9-bearer-of-a-token"


def build(root: Path, uri: str, *overrides: str) -> Build:
    config = load_config(
        [f"paths.root={root}", f"tracking.uri='{uri}'", f"tracking.experiment={root.name}", *overrides]
    )
    return run_build(config, Console(file=io.StringIO()), TOYS)


def runs_of(server: MlflowServer, experiment: str) -> list[dict[str, Run]]:
    """The runs of every build, newest first, by stage; the build's own is `build`."""
    client = MlflowClient(server.uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return [
        {"build": parent}
        | {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
        for parent in parents
    ]


def states(runs: Mapping[str, Run]) -> set[str]:
    return {run.info.status for run in runs.values()}


def test_builds_side_by_side_are_all_recorded(
    mlflow_server: MlflowServer, fork_server: ForkServer, tmp_path: Path
) -> None:
    environment = {"ENGINEWRIGHT_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": mlflow_server.uri}
    jobs = [
        Job(
            [f"verify.num_prompts={count}", "tracking.experiment=side", "target=[cpu]"],
            environment,
            f"{tmp_path}/{count}.log",
            toys=True,
        )
        for count in (3, 4, 5)
    ]
    ended = fork_server.run(*jobs)
    assert [one.code for one in ended] == [0, 0, 0], [one.stderr for one in ended]
    builds = runs_of(mlflow_server, "side")
    assert sorted(runs["build"].data.params["verify.num_prompts"] for runs in builds) == ["3", "4", "5"]
    for runs in builds:
        assert set(runs) == {"build", *STAGES}
        assert states(runs) == {"FINISHED"}
    made = [run for runs in builds for run in runs.values() if run.data.tags.get("cached") == "false"]
    # What does not depend on the setting is made once; verify and package for each. Bench takes no more than compile.
    assert sorted(run.info.run_name for run in made) == sorted(
        ["fetch", "convert", "draft", "compile", "bench", *3 * ["verify"], *3 * ["package"]]
    )
    client = MlflowClient(mlflow_server.uri)
    for run in made:
        assert "stage.log" in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_a_failure_is_recorded_with_its_traceback(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    with pytest.raises(EnginewrightError, match="greedy agreement"):
        build(tmp_path, mlflow_server.uri, "verify.num_prompts=13")
    (runs,) = runs_of(mlflow_server, tmp_path.name)
    assert [runs[name].info.status for name in ("build", "compile", "verify")] == ["FAILED", "FINISHED", "FAILED"]
    assert "greedy agreement 0.1 is below 0.95" in runs["verify"].data.tags["exception"]
    client = MlflowClient(mlflow_server.uri)
    for name in ("build", "verify"):
        text = Path(client.download_artifacts(runs[name].info.run_id, "traceback.txt", str(tmp_path))).read_text()
        assert "Traceback (most recent call last)" in text
        assert "toy_engine/common.py" in text


def leaks(self: ToyStage, config: Any, inputs: Mapping[str, Artifact], out: Path, context: StageContext) -> StageOutput:
    """A stage that tells secrets in every way it has."""
    context.log.info("sending Authorization: Bearer %s", BEARER)
    logging.getLogger("a.library").warning(
        "key %s, secret %s", *map(SECRETS.get, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    )
    (out / "report.json").write_text(json.dumps({"url": f"https://me:{SOURCE_PASSWORD}@host/x", "ok": self.name}))
    if self.name == "verify":
        raise RuntimeError(f"401 for token {SECRETS['HF_TOKEN']} at https://me:{SOURCE_PASSWORD}@host")
    return StageOutput(summary=f"used {SECRETS['HF_TOKEN']}")


def test_no_secret_reaches_the_store_the_logs_or_the_screen(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ToyStage, "run", leaks)
    uri = f"http://me:{URI_PASSWORD}@127.0.0.1:{mlflow_server.port}"
    with pytest.raises(RuntimeError, match="401 for token"):
        build(tmp_path, uri, f"model.source='pypi:x==1#https://me:{SOURCE_PASSWORD}@host/a.gguf'")
    (runs,) = runs_of(mlflow_server, tmp_path.name)
    assert runs["build"].data.params["tracking.uri"] == f"http://***@127.0.0.1:{mlflow_server.port}"
    assert runs["fetch"].data.params["source"] == "pypi:x==1#https://***@host/a.gguf"
    assert "401 for token ***" in runs["verify"].data.tags["exception"]
    planted = [secret.encode() for secret in (*SECRETS.values(), URI_PASSWORD, SOURCE_PASSWORD, BEARER)]
    # A stage's output is its own affair; what is told about it is ours.
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "content"]
    told = [path for path in mlflow_server.folder.rglob("*") if path.is_file()]
    assert {"stage.log", "artifact.json"} <= {path.name for path in kept}
    assert {"stage.log", "traceback.txt", "report.json", "config.json", "store.db"} <= {path.name for path in told}
    for path in [*kept, *told]:
        content = path.read_bytes()
        assert [secret for secret in planted if secret in content] == [], path
    shown = capsys.readouterr()
    assert [secret for secret in planted if secret.decode() in shown.out + shown.err] == []


def test_errors_on_the_command_line_hide_secrets_and_bugs_do_too(fork_server: ForkServer, tmp_path: Path) -> None:
    environment = {"ENGINEWRIGHT_HOME": str(tmp_path / "home")}
    wrong = Job([f"model=https://me:{SOURCE_PASSWORD}@host/x"], environment, f"{tmp_path}/wrong.log")
    (ended,) = fork_server.run(wrong)
    assert ended.code == 1
    assert ended.stderr.startswith("error: no model named 'https://***@host/x'")
    uri = f"mysql+nosuch://me:{URI_PASSWORD}@host/x"
    (ended,) = fork_server.run(Job([f"tracking.uri='{uri}'"], environment, f"{tmp_path}/store.log", toys=True))
    assert ended.code == 1
    assert "tracking store mysql+nosuch://***@host/x failed: " in ended.stderr
    assert URI_PASSWORD not in ended.stderr


def test_a_server_that_cannot_be_reached_stops_the_build_before_any_work(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    uri = f"http://me:{URI_PASSWORD}@127.0.0.1:{free_port()}"
    environment = {"ENGINEWRIGHT_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": uri}
    (ended,) = fork_server.run(Job([], environment, f"{tmp_path}/log", toys=True))
    assert ended.code == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: tracking store {uri.replace(f'me:{URI_PASSWORD}', '***')} failed: ")
    assert line.endswith("; set another tracking.uri or tracking=off")
    assert ended.seconds < 20
    assert not (tmp_path / "home/cache").exists()


def test_what_hydra_keeps_of_a_sweep_has_no_password(fork_server: ForkServer, tmp_path: Path) -> None:
    environment = {
        "ENGINEWRIGHT_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": f"mysql+nosuch://me:{URI_PASSWORD}@host/x"
    }  # fmt: skip
    (ended,) = fork_server.run(Job(["-m", "verify.num_prompts=3,4"], environment, f"{tmp_path}/log", toys=True))
    assert ended.code == 1
    (kept,) = tmp_path.rglob("multirun.yaml")
    assert "mysql+nosuch://***@host/x" in kept.read_text()
    assert URI_PASSWORD not in kept.read_text() + ended.stderr


class Cable:
    """A loopback port that leads to a server until it is cut."""

    def __init__(self, server: MlflowServer) -> None:
        self.server, self.port = server, free_port()
        self.ends: list[socket.socket] = []
        self.plug()

    def plug(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.server.port))
            self.ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def cut(self) -> None:
        for end in (self.listener, *self.ends):
            hang_up(end)
        self.ends.clear()


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(2**16):
            sink.sendall(data)
    except OSError:
        pass
    hang_up(sink)


def hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@pytest.fixture
def cable(mlflow_server: MlflowServer) -> Iterator[Cable]:
    made = Cable(mlflow_server)
    yield made
    made.cut()


def test_a_server_that_goes_away_midway_costs_the_record_and_not_the_bundle(
    mlflow_server: MlflowServer, cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = ToyStage.run

    def cutting(self: ToyStage, *args: Any) -> StageOutput:
        if self.name == "compile":
            cable.cut()
        return run(self, *args)

    monkeypatch.setattr(ToyStage, "run", cutting)
    uri = f"http://127.0.0.1:{cable.port}"
    started = time.monotonic()
    built = build(tmp_path, uri)
    assert time.monotonic() - started < 30
    assert (built.bundle / "manifest.json").is_file()
    warnings = [record.getMessage() for record in caplog.records if record.name == "pipelines.tracking_store"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"tracking store {uri} failed: ")
    assert warnings[0].endswith("; the build goes on, and the rest of it is not recorded")
    (runs,) = runs_of(mlflow_server, tmp_path.name)
    assert [runs[name].info.status for name in ("build", "convert", "compile")] == ["RUNNING", "FINISHED", "RUNNING"]
    assert (tmp_path / "mlflow" / LOST_FILE).read_text().count("\n") == 1

    cable.plug()
    build(tmp_path, uri)
    latest, earlier = runs_of(mlflow_server, tmp_path.name)
    assert states(latest) == states(earlier) == {"FINISHED"}
    for name in ("build", "compile"):
        assert earlier[name].data.tags["tracking_lost"].startswith(f"tracking store {uri} failed: ")
    assert (tmp_path / "mlflow" / LOST_FILE).read_text() == ""
