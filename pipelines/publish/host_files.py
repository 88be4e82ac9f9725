"""What a host needs beside a bundle to run it: the code of two packages."""

from pathlib import Path

import plugins
import runtime
from pipelines.publish.publication import PublishedFile, file_here

ANY_TARGET = "auto"  # the host takes the engine that it can run, as `python -m runtime` does
PACKAGES = {"runtime/": runtime, "plugins/": plugins}
REQUIREMENTS = ("torch>=2.11", "numpy>=2.0", "safetensors>=0.6", "tokenizers>=0.22", "jinja2>=3.1",
                "cuda-python>=13.0")  # fmt: skip
TARGET_REQUIREMENTS = {"onnx": ("onnxruntime>=1.32",)}


def code_files(prefix: str) -> list[PublishedFile]:
    """The sources of runtime/ and plugins/ under `prefix`, without what Python compiled of them."""
    found = []
    for name, package in PACKAGES.items():
        root = Path(str(package.__file__)).parent
        paths = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        found += [file_here(prefix + name + path.relative_to(root).as_posix(), path) for path in sorted(paths)]
    return found
