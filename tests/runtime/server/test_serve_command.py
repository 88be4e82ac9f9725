"""`python -m runtime serve` as a user meets it, in a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from runtime.cli import main
from tests.runtime.test_cli import REPOSITORY
from tests.runtime.test_cli import bundle as bundle


@pytest.fixture
def served(bundle):
    """A running server and its address."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    arguments = [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", "0", "--model-name", "mine"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        line = process.stderr.readline()
        address = re.fullmatch(r"mine at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C ends it\)\n", line)
        assert address, line + process.stderr.read()
        yield process, address[1]
        process.kill()


def test_a_bundle_is_served_until_sigterm_and_ends_with_0(served):
    process, address = served
    transport = httpx2.HTTPTransport(retries=20)
    with httpx2.Client(transport=transport, base_url=address) as client:
        version = client.get("/version").json()
        answer = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3}).json()
    assert (version["model"], version["target"], len(version["bundle"])) == ("mine", "cpu", 64)
    assert answer["usage"]["completion_tokens"] <= 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert '"path": "/v1/completions", "status": 200' in process.stdout.read()


def refused(*arguments):
    """Serve in vain; give the one line."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", *map(str, arguments)])
    message = str(ended.value)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_a_port_in_use_is_one_line(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused(bundle, "--port", port)
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use); name another with --host or --port" in error


def test_what_cannot_be_served_is_one_line(bundle, tmp_path):
    assert f"{tmp_path}: no engine bundle here" in refused(tmp_path, "--port", 0)
    assert "the API keys cannot be read" in refused(bundle, "--api-key-file", tmp_path / "none")
    assert "max_queue is -1; it must be between 0 and" in refused(bundle, "--max-queue", -1)
    assert "traces is 'zipkin'" in refused(bundle, "--traces", "zipkin")
    assert "cannot listen on nowhere.invalid:8000" in refused(bundle, "--host", "nowhere.invalid")


def test_missing_packages_are_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "runtime.server.run")
    error = refused(bundle)
    assert "serving needs uvicorn, which is not installed: pip install fastapi uvicorn prometheus-client" in error
