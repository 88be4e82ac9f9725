"""A bundle in MLflow's registry: one version for each bundle, which MLflow loads and serves, and nothing pickled."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipelines.config import PathsConfig, TrackingConfig
from pipelines.publish.mlflow_registry import MlflowRegistry, find_version
from pipelines.publish.publication import Publication
from pipelines.publish.pulling import pull
from pipelines.tracking_store import Store
from runtime.errors import EnginewrightError
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from tests.pipelines.conftest import free_port
from tests.pipelines.publish.conftest import GOLDEN
from tests.pipelines.publish.places import contents

Settings = tuple[TrackingConfig, PathsConfig]
ASKED = {"input": [{"role": "user", "content": "hello"}], "max_output_tokens": 8}


def expected_answer() -> str:
    return LLM(GOLDEN).chat(ASKED["input"], SamplingParams(max_tokens=8)).text


def test_publishing_twice_adds_no_second_version(
    golden: Publication, other: Publication, tmp_path: Path, store_settings: Settings
) -> None:
    registry = MlflowRegistry("", *store_settings)
    assert f"version 1 of {golden.name} is candidate" in registry.publish(golden, False).describe("x")
    assert "nothing was sent" in registry.publish(golden, False).describe("x")
    registry.publish(other, False)
    client = Store(*store_settings).client
    assert len(client.search_model_versions(f"name = '{golden.name}'")) == 2
    assert str(client.get_model_version_by_alias(golden.name, "candidate").version) == "2"
    registry.publish(golden, False)
    assert str(client.get_model_version_by_alias(golden.name, "candidate").version) == "1"
    assert len(client.search_model_versions(f"name = '{golden.name}'")) == 2


def test_a_version_comes_back_byte_for_byte(golden: Publication, tmp_path: Path, store_settings: Settings) -> None:
    MlflowRegistry("mine", *store_settings).publish(golden, False)
    pull(MlflowRegistry("mine", *store_settings), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


def test_mlflow_loads_it_from_code_and_answers_as_the_bundle_does(
    golden: Publication, tmp_path: Path, store_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)  # where MLflow would leave what it has no place for
    MlflowRegistry("", *store_settings).publish(golden, False)
    files = [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]
    agent = mlflow.pyfunc.load_model(f"models:/{golden.name}@candidate")
    answer = agent.predict(ASKED)
    assert answer["output"][0]["content"][0]["text"] == expected_answer()
    events = list(agent.predict_stream(ASKED))
    assert "".join(event["delta"] for event in events if "delta" in event) == expected_answer()
    assert events[-1]["type"] == "response.output_item.done"
    mlflow.flush_trace_async_logging()
    client = Store(*store_settings).client
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    assert client.search_traces(locations=everywhere) == []  # prompts go to no store


def test_an_interrupted_publication_registers_nothing_and_goes_on(
    golden: Publication, tmp_path: Path, store_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = MlflowRegistry("", *store_settings)
    store = Store(*store_settings)
    log, sent = type(store.client).log_model_artifact, []

    def breaking(self: object, model_id: str, path: str, folder: str | None = None) -> None:
        if len(sent) == 6:
            raise KeyboardInterrupt
        sent.append(path)
        log(self, model_id, path, folder)

    with monkeypatch.context() as patch:
        patch.setattr(type(store.client), "log_model_artifact", breaking)
        with pytest.raises(KeyboardInterrupt):
            registry.publish(golden, False)
    assert find_version(store.client, golden.name, golden.bundle.bundle_id) is None
    outcome = registry.publish(golden, False)
    assert len(store.client.search_logged_models([store.experiment_id])) == 1
    assert not {Path(path).name for path in sent} & {Path(name).name for name in outcome.sent if "bundle/" in name}
    pull(MlflowRegistry(golden.name, *store_settings), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


def test_a_registry_that_is_not_there_is_one_line(golden: Publication, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = MlflowRegistry("", TrackingConfig(uri="http://127.0.0.1:9"), PathsConfig())
    with pytest.raises(EnginewrightError, match=r"http://127.0.0.1:9 failed") as caught:
        registry.publish(golden, False)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_mlflow_serves_it_over_http(golden: Publication, tmp_path: Path, store_settings: Settings) -> None:
    MlflowRegistry("", *store_settings).publish(golden, False)
    port = free_port()
    uri = store_settings[0].uri
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port),
               "--model-uri", f"models:/{golden.name}@candidate"]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        answer = ask(port, server, tmp_path / "log")
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
    assert answer["output"][0]["content"][0]["text"] == expected_answer()


def ask(port: int, server: "subprocess.Popen[bytes]", log: Path) -> dict:
    """Its answer, once it is up."""
    body, headers = json.dumps(ASKED).encode(), {"Content-Type": "application/json"}
    deadline = time.monotonic() + 120
    while True:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, headers)
            return json.loads(urllib.request.urlopen(request, timeout=30).read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
