"""What decides a stage's output. Its digest is the key under which the output is cached.

Leave something out and a stale output is reused; put in too much and work is done twice.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.codedigest import code_digest
from pipelines.hardware import fingerprint
from pipelines.plain import plain
from pipelines.stage import Artifact, Stage
from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file


@dataclass(frozen=True)
class Node:
    """One stage in one build."""

    module: str  # has the stage as STAGE; imported when the key is made, so it must be light
    config: Any  # the stage's frozen dataclass
    target: str = ""
    external: tuple[Path, ...] = ()  # the user's own files that it reads: size and time of change enter the key
    check_inputs: bool = False  # re-read every input file and compare its digest before building
    always: bool = False  # built each time, whatever is cached: its effect is outside the cache
    label: str = ""  # what a build that runs the stage twice calls this run of it; no part of the key

    @property
    def stage(self) -> Stage:
        stage: Stage = import_module(self.module).STAGE
        return stage

    @property
    def name(self) -> str:
        """What the build calls it: the stage's name unless it has a label."""
        return self.label or self.stage.name


def key_parts(node: Node, inputs: Mapping[str, Artifact], roots: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Everything that decides the output, as plain data that a person can compare.

    Args:
        roots: folder of each first-party package, for the code digest; by default ours.
    """
    stage = node.stage
    parts: dict[str, Any] = {
        "stage": stage.name,
        "config": plain(node.config),
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        "code": code_digest(node.module, roots),
        "libraries": {name: library_version(name) for name in ("python", *stage.libraries)},
        "resources": resource_digests(stage.resources),
    }
    if node.target:
        parts["target"] = node.target
    if node.external:
        parts["external"] = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in node.external]
    if stage.hardware_bound:
        parts["hardware"] = fingerprint()
    return parts


def resource_digests(paths: Sequence[Path]) -> dict[str, str]:
    """The digest of each file, by its path below the folder that holds them all."""
    if not paths:
        return {}
    root = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in paths}


@cache
def library_version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise EnginewrightError(f"library {name!r} is not installed; install Enginewright again") from error
