"""Deployment files: what they say is what Kubernetes, KServe and Ray read, and their context serves by itself."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import pytest
import yaml

from pipelines.deploy.files import write_deploy_files
from pipelines.deploy.options import DeployOptions
from pipelines.deploy.workload import Workload, kubernetes_name
from pipelines.enginewright import main
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.llm import LLM
from runtime.readiness import memory_need
from runtime.sampling import SamplingParams
from tests.pipelines.conftest import free_port
from tests.pipelines.test_signing import GOLDEN, keys, original  # noqa: F401 (fixtures)

# The fields that we write, and their types, as the API references of Kubernetes and KServe have them.
LABELS = {str: str}
PROBE = {"httpGet": {"path": str, "port": str | int}, "periodSeconds": int, "timeoutSeconds": int,
         "failureThreshold": int}  # fmt: skip
SECRET = {"name": str, "key": str, "optional": bool}
CONTAINER = {
    "name": str, "image": str,
    "ports": [{"name": str, "containerPort": int, "protocol": str}],
    "env": [{"name": str, "valueFrom": {"secretKeyRef": SECRET}}],
    "resources": {"requests": LABELS, "limits": LABELS},
    "startupProbe": PROBE, "readinessProbe": PROBE, "livenessProbe": PROBE,
    "securityContext": {"allowPrivilegeEscalation": bool, "readOnlyRootFilesystem": bool,
                        "capabilities": {"drop": [str]}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}  # fmt: skip
POD = {
    "containers": [CONTAINER],
    "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "seccompProfile": {"type": str}},
    "automountServiceAccountToken": bool, "terminationGracePeriodSeconds": int,
    "volumes": [{"name": str, "emptyDir": {}}],
}  # fmt: skip
META = {"name": str, "labels": LABELS, "annotations": LABELS}
DEPLOYMENT = {
    "apiVersion": str, "kind": str, "metadata": META,
    "spec": {"replicas": int, "selector": {"matchLabels": LABELS},
             "template": {"metadata": {"labels": LABELS, "annotations": LABELS}, "spec": POD}},
}  # fmt: skip
SERVICE = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "labels": LABELS},
    "spec": {"selector": LABELS, "ports": [{"name": str, "port": int, "targetPort": str | int}]},
}  # fmt: skip
INFERENCE_SERVICE = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "annotations": LABELS},
    "spec": {"predictor": {"minReplicas": int, **POD}},
}  # fmt: skip
RAY = {
    "http_options": {"host": str, "port": int},
    "applications": [{
        "name": str, "route_prefix": str, "import_path": str, "args": LABELS,
        "deployments": [{
            "name": str, "num_replicas": int,
            "ray_actor_options": {"num_cpus": int, "num_gpus": int, "memory": int,
                                  "runtime_env": {"env_vars": LABELS}},
        }],
    }],
}  # fmt: skip


def faults(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """Where a document differs from a schema: a field too many or too few, or of another type."""
    if isinstance(schema, type | UnionType):
        if not isinstance(value, schema) or (isinstance(value, bool) and schema is not bool):
            yield f"{where}: {value!r} is no {schema}"
    elif isinstance(schema, list):
        for item in value if isinstance(value, list) and value else [None]:
            yield from faults(item, schema[0], f"{where}[]")
    elif schema == LABELS:
        yield from (f"{where}.{key}: {item!r}" for key, item in value.items() if not isinstance(item, str))
    elif not isinstance(value, dict) or set(value) != set(schema):
        yield f"{where}: {value!r} has not the fields {sorted(schema)}"
    else:
        for key, part in schema.items():
            yield from faults(value[key], part, f"{where}.{key}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workload]:
    out = tmp_path_factory.mktemp("deploy") / "files"
    return out, write_deploy_files(GOLDEN, out, DeployOptions(cpus=2, replicas=3))


def documents(folder: Path, name: str) -> list[Any]:
    return list(yaml.safe_load_all((folder / name).read_text()))


def test_every_document_has_the_fields_of_its_kind(written: tuple[Path, Workload]) -> None:
    folder, _ = written
    deployed, reached = documents(folder, "kubernetes.yaml")
    (inference,) = documents(folder, "kserve.yaml")
    (ray,) = documents(folder, "ray-serve.yaml")
    kinds = {
        "apps/v1 Deployment": (deployed, DEPLOYMENT),
        "v1 Service": (reached, SERVICE),
        "serving.kserve.io/v1beta1 InferenceService": (inference, INFERENCE_SERVICE),
    }
    for kind, (document, schema) in kinds.items():
        assert list(faults(document, schema)) == []
        assert f"{document['apiVersion']} {document['kind']}" == kind
    assert list(faults(ray, RAY)) == []
    assert list(faults({**ray, "extra": 1}, RAY))  # the check can fail


def test_the_service_finds_the_pods_and_the_probes_the_server(written: tuple[Path, Workload]) -> None:
    folder, work = written
    deployed, reached = documents(folder, "kubernetes.yaml")
    template = deployed["spec"]["template"]
    assert deployed["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"] == reached["spec"]["selector"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert reached["spec"]["ports"][0]["targetPort"] == port["name"]
    paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")]
    assert paths == ["/ready", "/ready", "/health"]
    assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "readiness")} == {port["name"]}
    assert port["containerPort"] == work.port
    assert f'"--port", "{work.port}"' in (folder / "Containerfile").read_text()
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(work.port)
    assert template["spec"]["terminationGracePeriodSeconds"] > work.drain_s
    assert deployed["spec"]["replicas"] == 3


def test_a_replica_gets_the_memory_of_weights_and_cache(written: tuple[Path, Workload]) -> None:
    folder, work = written
    bundle = open_bundle(GOLDEN)
    need = memory_need(GOLDEN, bundle.manifest, "cpu")
    resources = documents(folder, "kserve.yaml")[0]["spec"]["predictor"]["containers"][0]["resources"]
    asked = int(re.fullmatch(r"(\d+)Mi", resources["requests"]["memory"])[1]) * 2**20  # type: ignore[index]
    assert need.kv_cache == 32768 * 2 * 2 * 2 * 8 * 4  # tokens, K and V, layers, heads, head size, bytes
    assert 0 <= asked - work.memory_bytes < 2**20
    assert work.memory_bytes > need.weights + need.kv_cache
    assert resources["requests"]["cpu"] == "2"
    assert (
        documents(folder, "ray-serve.yaml")[0]["applications"][0]["deployments"][0]["ray_actor_options"]["memory"]
        == work.memory_bytes
    )


def test_the_image_is_named_by_the_bundles_id_and_pins_what_it_installs(written: tuple[Path, Workload]) -> None:
    folder, work = written
    assert work.image == f"enginewright/golden-tiny-fp32:{open_bundle(GOLDEN).bundle_id[:12]}"
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9-]+==[0-9][0-9.]*", line) for line in lines)
    assert {line.partition("==")[0] for line in lines} >= {"torch", "tokenizers", "fastapi", "uvicorn"}
    containerfile = (folder / "Containerfile").read_text()
    assert "://" not in containerfile  # which index has torch's build is the builder's choice
    assert re.search(r"^USER \d+$", containerfile, re.MULTILINE)
    ignored = (folder / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert all((folder / line.removeprefix("!")).exists() for line in ignored[1:])


def test_the_context_alone_serves_the_bundle_where_nothing_else_of_ours_is(
    written: tuple[Path, Workload], tmp_path: Path
) -> None:
    folder, _ = written
    port = free_port()
    code = f"import sys\nsys.path[0:0] = [{str(folder)!r}]\nfor name in ('pipelines', 'mlflow', 'transformers'):\n" \
           f"    sys.modules[name] = None\nfrom runtime.cli import main\nmain(sys.argv[1:])\n"  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "serve", str(GOLDEN), "--port", str(port), "--speculation", "off"]
    server = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        assert json.loads(answer(f"http://127.0.0.1:{port}/ready", server)) == {"status": "ok"}
        assert b"<title>Enginewright" in answer(f"http://127.0.0.1:{port}/", server)
    finally:
        server.terminate()
        assert server.wait(20) == 0


def answer(url: str, process: subprocess.Popen[Any], seconds: float = 60) -> bytes:
    """What a server says, once it is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.read()  # type: ignore[no-any-return]
        except OSError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)


def test_a_required_signature_travels_in_the_image(original: Path, keys: Path, tmp_path: Path) -> None:  # noqa: F811
    public = keys / "mine.pub"
    write_deploy_files(original, tmp_path / "out", DeployOptions(public_key=public))
    assert (tmp_path / "out/key.pub").read_bytes() == public.read_bytes()
    assert "ENGINEWRIGHT_REQUIRE_SIGNATURE=/app/key.pub" in (tmp_path / "out/Containerfile").read_text()
    assert "model-signing==" in (tmp_path / "out/requirements.txt").read_text()
    assert "!key.pub" in (tmp_path / "out/.dockerignore").read_text()
    assert documents(tmp_path / "out", "ray-serve.yaml")[0]["applications"][0]["args"]["public_key"] == "key.pub"
    with pytest.raises(EnginewrightError, match="the bundle is not signed"):
        write_deploy_files(GOLDEN, tmp_path / "none", DeployOptions(public_key=public))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cpus", "0"], "cpus is 0; it must be at least 1"),
        (["--target", "cuda"], "no engine for target 'cuda', only for cpu"),
        ([], "there already; name a new folder"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(["deploy-files", str(GOLDEN), str(tmp_path if not arguments else tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("SmolLM2_135M.bf16", "smollm2-135m-bf16"), ("7b", "engine-7b"), ("a" * 80, "a" * 40), ("--x--", "x")],
)
def test_a_kubernetes_name_is_what_kubernetes_allows(name: str, expected: str) -> None:
    assert kubernetes_name(name) == expected
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", expected)


RAY_RUN = """
import json, sys, urllib.request
import ray, yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema
config = yaml.safe_load(open("ray-serve.yaml"))
ServeDeploySchema(**config)  # raises for a field that Ray does not know
application = config["applications"][0]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
import serve_app
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
built = serve_app.build({**application["args"], "bundle": sys.argv[1]})
serve.run(built, name=application["name"], route_prefix=application["route_prefix"])
base = f"http://127.0.0.1:{sys.argv[2]}"
body = json.dumps({"prompt": "hello", "max_tokens": 6, "temperature": 0}).encode()
asked = urllib.request.Request(base + "/v1/completions", body, {"content-type": "application/json"})
text = json.load(urllib.request.urlopen(asked))["choices"][0]["text"]
stream = urllib.request.Request(base + "/v1/completions", body[:-1] + b', "stream": true}', asked.headers)
events = [line for line in urllib.request.urlopen(stream).read().decode().splitlines() if line]
print(json.dumps({"health": json.load(urllib.request.urlopen(base + "/health")), "text": text, "events": events}))
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_local_ray_serves_what_the_engine_says(written: tuple[Path, Workload], tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'enginewright[ray]'")
    folder, _ = written
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", RAY_RUN, str(GOLDEN), str(free_port())]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"health"')))
    expected = LLM(GOLDEN).generate("hello", SamplingParams(max_tokens=6))[0].text
    assert said["health"] == {"status": "ok"}
    assert said["text"] == expected
    assert said["events"][-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: "))["choices"] for line in said["events"][:-1]]
    assert "".join(choices[0]["text"] for choices in pieces if choices) == expected
