"""The files of a bundle as a model of MLflow's: the bundle, the code that runs it, and what describes both."""

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pipelines.publish.host_files import ANY_TARGET, REQUIREMENTS, TARGET_REQUIREMENTS, code_files
from pipelines.publish.publication import Publication, PublishedFile, file_here
from runtime.formats.manifest import ATTESTATIONS_DIR

BUNDLE = "artifacts/bundle/"
ATTESTATIONS = f"{BUNDLE}{ATTESTATIONS_DIR}/"
CODE = "mlflow_model.py"
MLMODEL = "MLmodel"


def bundle_files(publication: Publication) -> list[PublishedFile]:
    """The bundle's own, its manifest last."""
    return [file._replace(name=BUNDLE + file.name) for file in publication.files]


def model_files(publication: Publication, folder: Path) -> Iterator[PublishedFile]:
    """What makes a model of MLflow's of the bundle; those that are not there yet are written to `folder`."""
    yield from code_files("code/")
    yield file_here(CODE, Path(__file__).with_name(CODE))
    own = [line for target in publication.bundle.targets for line in TARGET_REQUIREMENTS.get(target, ())]
    (folder / "requirements.txt").write_text("\n".join([*REQUIREMENTS, *own, f"mlflow=={version('mlflow')}", ""]))
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(environment))  # which is YAML
    _write_mlmodel(publication, folder / MLMODEL)
    yield from (file_here(name, folder / name) for name in ("requirements.txt", "python_env.yaml", MLMODEL))


def _write_mlmodel(publication: Publication, path: Path) -> None:
    """Describe the model. MLflow's own way to save an agent would load and run it, on a machine that only publishes."""
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import add_to_model
    from mlflow.types.responses import RESPONSES_AGENT_INPUT_SCHEMA, RESPONSES_AGENT_OUTPUT_SCHEMA

    model = Model(
        signature=ModelSignature(RESPONSES_AGENT_INPUT_SCHEMA, RESPONSES_AGENT_OUTPUT_SCHEMA),
        metadata={"task": "agent/v1/responses"},
        model_size_bytes=sum(file.size_bytes for file in publication.files),
    )
    add_to_model(
        model,
        loader_module="mlflow.pyfunc.loaders.code_model",
        code="code",
        python_env="python_env.yaml",
        model_config={"target": ANY_TARGET},
        model_code_path=CODE,
        artifacts={"bundle": {"path": BUNDLE.rstrip("/"), "uri": BUNDLE.rstrip("/")}},
        streamable=True,
    )
    model.save(str(path))
