"""What tests of builds share: processes that are ready to build, and an MLflow server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.loading import load_config
from pipelines.tracking_store import MLFLOW_SETTINGS, Store
from tests.pipelines.fork_server import ForkServer


@pytest.fixture(autouse=True)
def no_store_of_another_test() -> Iterator[None]:
    """A store that is opened in this process names itself in the environment, where the next build would find it."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    root = tmp_path_factory.mktemp("store")
    config = load_config([f"paths.root={root}"])
    store = Store(config.tracking, config.paths)
    # The experiment knows the folder of its artifacts, which differs for each test.
    store.client.rename_experiment(store.experiment_id, "unused")
    return root / "mlflow/mlflow.db"


@dataclass(frozen=True)
class MlflowServer:
    """A tracking server on loopback with a database and artifacts of its own."""

    port: int
    folder: Path

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow-server")
    server = MlflowServer(free_port(), folder)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(server.port),
               "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/store.db",
               "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    environment = {**os.environ, **MLFLOW_SETTINGS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
    try:
        wait_until_up(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(server: MlflowServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{server.uri}/health", timeout=5).read()
            return
        except OSError:
            assert process.poll() is None, (server.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the MLflow server does not answer"
            time.sleep(0.1)
