"""A model repository of NVIDIA Triton, `triton:<folder>`, whose python backend runs the bundle.

<folder>/<model>/1/bundle/             the bundle
<folder>/<model>/1/runtime, plugins/   the code that runs it
<folder>/<model>/1/model.py            triton_model.py
<folder>/<model>/config.pbtxt          inputs, outputs, decoupled streaming; written last
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.publish.errors import no_bundle, place_errors, shown
from pipelines.publish.folder import pull_tree
from pipelines.publish.host_files import ANY_TARGET, PACKAGES, code_files
from pipelines.publish.mirror import Layout, mirror
from pipelines.publish.publication import Outcome, Publication, file_here
from pipelines.publish.tree import Tree
from runtime.errors import EnginewrightError
from runtime.formats.bundle import Bundle
from runtime.formats.manifest import MANIFEST_FILE

CONFIG = "config.pbtxt"
MODEL = "1/model.py"
BUNDLE = "1/bundle/"
LAYOUT = Layout(BUNDLE, (MODEL, CONFIG, *(f"1/{package}" for package in PACKAGES)))
OPTIONAL_INPUTS = {"max_tokens": "TYPE_INT32", "temperature": "TYPE_FP32", "top_p": "TYPE_FP32",
                   "top_k": "TYPE_INT32", "seed": "TYPE_INT64"}  # fmt: skip


class TritonRepository:
    """A repository in a folder; other models in it are left alone."""

    def __init__(self, folder: str) -> None:
        self.location = f"triton:{folder}"
        self.folder = Path(folder)

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        name = publication.name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise EnginewrightError(
                f"{shown(self.location)}: the bundle's name {name!r} can name no folder; package it anew"
            )
        with place_errors(self.location), TemporaryDirectory() as made:
            config = Path(made, CONFIG)
            config.write_text(model_config(publication.bundle), encoding="utf-8")
            files = [file._replace(name=BUNDLE + file.name) for file in publication.files]
            model = file_here(MODEL, Path(__file__).with_name("triton_model.py"))
            everything = [*files, *code_files("1/"), model, file_here(CONFIG, config)]
            return mirror(Tree(str(self.folder / name)), self.location, everything, replace, LAYOUT)

    def pull(self, folder: Path) -> None:
        models = sorted(path.parent.parent.parent for path in self.folder.glob(f"*/{BUNDLE}{MANIFEST_FILE}"))
        if len(models) != 1:
            names = ", ".join(path.name for path in models) or "none"
            raise no_bundle(self.location, f"the folder should have one model with a bundle, it has: {names}")
        with place_errors(self.location):
            pull_tree(Tree(str(models[0] / BUNDLE)), self.location, folder)


def model_config(bundle: Bundle) -> str:
    """The repository's description of the model, in protobuf's text form."""
    inputs = [_tensor("prompt", "TYPE_STRING"), *(_tensor(*item, optional=True) for item in OPTIONAL_INPUTS.items())]
    return "\n".join(
        [
            f'name: "{bundle.manifest["model"]["name"]}"',
            'backend: "python"',
            "max_batch_size: 0",
            "model_transaction_policy { decoupled: true }",
            "input [\n  " + ",\n  ".join(inputs) + "\n]",
            "output [\n  " + _tensor("text", "TYPE_STRING") + "\n]",
            "instance_group [ { count: 1 kind: KIND_CPU } ]",  # one process, which finds its GPU itself
            f'parameters {{ key: "target" value {{ string_value: "{ANY_TARGET}" }} }}',
            "",
        ]
    )


def _tensor(name: str, data_type: str, optional: bool = False) -> str:
    return f'{{ name: "{name}" data_type: {data_type} dims: [ 1 ]{" optional: true" if optional else ""} }}'
