"""Writes what deploys a bundle into a new folder."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from pipelines.deploy.container import BUNDLE_DIR, KEY_FILE, write_container
from pipelines.deploy.kubernetes import deployment, inference_service, service
from pipelines.deploy.options import DeployOptions
from pipelines.deploy.workload import Workload, workload
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle

RAY_APPLICATION = Path(__file__).with_name("serve_app.py")


class _PlainDumper(yaml.SafeDumper):
    """Writes what occurs twice twice: aliases are hard to read and to edit."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def write_deploy_files(bundle: Path, out: Path, options: DeployOptions) -> Workload:
    """Write the container's files, manifests for Kubernetes and KServe, and a Ray Serve application.

    Raises:
        EnginewrightError: the bundle is damaged or not signed as asked, or the folder exists or cannot be written.
    """
    work = workload(open_bundle(bundle, options.public_key), options)
    if out.exists():
        raise EnginewrightError(f"{out}: there already; name a new folder")
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_container(work, temporary)
        shutil.copyfile(RAY_APPLICATION, temporary / RAY_APPLICATION.name)
        _write_yaml(temporary / "kubernetes.yaml", "kubectl apply -f kubernetes.yaml", deployment(work), service(work))
        _write_yaml(temporary / "kserve.yaml", "kubectl apply -f kserve.yaml", inference_service(work))
        _write_yaml(temporary / "ray-serve.yaml", "serve run ray-serve.yaml", ray_serve(work))
        temporary.rename(out)
    except OSError as error:
        raise EnginewrightError(f"{out}: cannot be written ({error.strerror}); name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return work


def ray_serve(work: Workload) -> dict[str, Any]:
    """Ray Serve's configuration of one application."""
    arguments = {"bundle": BUNDLE_DIR, "target": work.target}
    actor: dict[str, Any] = {"num_cpus": work.cpus, "memory": work.memory_bytes, "num_gpus": work.gpus}
    actor["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(work.cpus)}}
    return {
        "http_options": {"host": "0.0.0.0", "port": work.port},
        "applications": [
            {
                "name": work.name,
                "route_prefix": "/",
                "import_path": "serve_app:build",
                "args": arguments | ({"public_key": KEY_FILE} if work.public_key else {}),
                "deployments": [{"name": "Engine", "num_replicas": work.replicas, "ray_actor_options": actor}],
            }
        ],
    }


def _write_yaml(path: Path, use: str, *documents: dict[str, Any]) -> None:
    text = yaml.dump_all(documents, Dumper=_PlainDumper, sort_keys=False)
    path.write_text(f"# {use}\n{text}", encoding="utf-8")
