"""What this installation and this machine can build and run, and the state of the local store. Changes nothing.

Whether one bundle runs here is runtime/readiness.py's to say.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cleaning import Limits, entries, leftovers, total_bytes
from pipelines.codedigest import code_digest
from pipelines.config import PathsConfig
from pipelines.keys import library_version
from pipelines.planning.planner import Earlier, earlier_artifacts
from pipelines.planning.report import size
from pipelines.provenance import git_tags
from pipelines.stages.package import DETERMINING_STAGES
from runtime import machine
from runtime.errors import EnginewrightError
from runtime.machine import Machine
from runtime.targets import TARGETS, Side, build_side, installed, run_side

LIBRARIES = (
    "enginewright", "torch", "numpy", "safetensors", "tokenizers", "jinja2", "cuda-bindings", "transformers", "gguf",
    "hydra-core", "mlflow", "huggingface-hub", "onnx",
)  # fmt: skip
STAGES = (*DETERMINING_STAGES, "verify", "bench", "package")


@dataclass(frozen=True)
class TargetState:
    name: str
    build: Side
    run: Side


@dataclass(frozen=True)
class StoreState:
    """The local store; sizes in bytes."""

    root: str
    free_bytes: int
    entries: int
    cache_bytes: int
    old_entries: int  # made by other code or library versions: no build of this installation uses them
    damaged_entries: int
    bundles: int
    bundle_bytes: int
    leftovers: int
    held_locks: int
    free_locks: int  # files of locks that nobody holds, which is how a lock is left and does no harm


@dataclass(frozen=True)
class Diagnosis:
    versions: dict[str, str]  # empty: not installed
    machine: Machine
    targets: tuple[TargetState, ...]
    store: StoreState


def diagnose(paths: PathsConfig) -> Diagnosis:
    """Look at everything; imports no torch."""
    found = machine.look()
    versions = {"python": library_version("python"), **{name: installed(name) for name in LIBRARIES}}
    if commit := git_tags(Path(__file__).resolve().parent):
        dirty = ", changed" if commit["git_dirty"] == "true" else ""
        versions["enginewright"] = f"{versions['enginewright'] or 'not installed'} ({commit['git_commit'][:12]}{dirty})"
    targets = tuple(TargetState(target.name, build_side(target), run_side(target, found)) for target in TARGETS)
    return Diagnosis(versions, found, targets, store_state(paths))


def store_state(paths: PathsConfig) -> StoreState:
    folders = [found.path for found in entries(paths.cache)]
    whole = [item for stage in paths.cache.glob("*/") for item in earlier_artifacts(stage)]
    bundles = [path for path in paths.bundles.glob("*/") if not path.is_symlink()]
    locks = [is_held(path) for path in paths.cache.glob("*/*.lock")]
    return StoreState(
        root=paths.root,
        free_bytes=machine.free_disk_bytes(Path(paths.root)),
        entries=len(folders),
        cache_bytes=total_bytes(folders),
        old_entries=sum(is_old(item) for item in whole),
        damaged_entries=len(folders) - len(whole),
        bundles=len(bundles),
        bundle_bytes=total_bytes(bundles),
        leftovers=len(list(leftovers(paths, Limits()))),
        held_locks=sum(locks),
        free_locks=len(locks) - sum(locks),
    )


def is_old(item: Earlier) -> bool:
    """Whether other code or other libraries made an artifact than this installation has."""
    made_from, stage = item.metadata.made_from, item.metadata.stage
    if stage not in STAGES:
        return True
    module = f"pipelines.stages.{stage}"
    try:
        libraries = {name: library_version(name) for name in ("python", *import_module(module).STAGE.libraries)}
    except EnginewrightError:  # one of them is not installed
        return True
    return bool(made_from.get("code") != code_digest(module) or made_from.get("libraries") != libraries)


def is_held(lock: Path) -> bool:
    with suppress(OSError):
        descriptor = os.open(lock, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def as_plain(diagnosis: Diagnosis) -> dict[str, Any]:
    return asdict(diagnosis)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Versions, machine, store, then a table of the targets."""
    for title, lines in (("Versions", version_lines(diagnosis)), ("Machine", machine_lines(diagnosis.machine)),
                         ("Store", store_lines(diagnosis.store))):  # fmt: skip
        console.print(title, style="bold")
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("target", "side", "here", "because", "instead"):
        table.add_column(name, overflow="fold")
    for target in diagnosis.targets:
        for side, state in (("build", target.build), ("run", target.run)):
            table.add_row(target.name, side, "yes" if state.possible else "no", state.reason, escape(state.remedy))
    console.print(table)


def version_lines(diagnosis: Diagnosis) -> Iterator[str]:
    yield from (f"{name:15} {version or 'not installed'}" for name, version in diagnosis.versions.items())


def machine_lines(found: Machine) -> Iterator[str]:
    bf16 = "fast" if found.has_bf16 else "slow: this CPU has no instructions for it, so PRECISION=fp32 is faster"
    yield f"{'system':15} {found.system}, {found.arch}"
    yield f"{'cpu':15} {found.cpu}, {found.cores} cores"
    yield f"{'instructions':15} {', '.join(found.flags) or 'none that matter'}; bf16 is {bf16}"
    yield f"{'RAM':15} {size(found.available_bytes)} of {size(found.memory_bytes)} free"
    if not found.gpus:
        driver = f"driver {found.driver}, but no GPU answers" if found.driver else "none; building needs none"
        yield f"{'GPU':15} {driver}"
    for gpu in found.gpus:
        major, minor = gpu.compute_capability
        yield f"{'GPU':15} {gpu.name}, {size(gpu.memory_bytes)}, sm_{major}{minor}, driver {found.driver or 'unknown'}"


def store_lines(store: StoreState) -> Iterator[str]:
    yield f"{'place':15} {store.root}, {size(store.free_bytes)} free"
    yield f"{'cache':15} {store.entries} stages, {size(store.cache_bytes)}"
    if store.old_entries:
        yield f"{'':15} {store.old_entries} of other code or library versions; clean-cache removes what is not used"
    if store.damaged_entries:
        yield f"{'':15} {store.damaged_entries} damaged; the next build makes them again"
    yield f"{'bundles':15} {store.bundles}, {size(store.bundle_bytes)}"
    held = f"{store.held_locks} locks held by running builds, {store.free_locks} lock files nobody holds (harmless)"
    yield f"{'locks':15} {held}"
    if store.leftovers:
        yield f"{'leftovers':15} {store.leftovers} of killed or failed builds; make clean-cache removes them"
