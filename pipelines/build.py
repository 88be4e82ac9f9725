"""One build, from a configuration to a bundle: which stage gets what from which."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console

from pipelines.bundles import bundle_id, place_bundle
from pipelines.config import BenchConfig, BuildConfig, VerifyConfig
from pipelines.draft.texts import parse_dataset
from pipelines.keys import Node
from pipelines.loading import SOURCE_SCHEMES
from pipelines.progress import BuildProgress
from pipelines.runner import Runner, StageResult
from pipelines.sources.hub import pinned
from pipelines.stages.package import COMPILING_STAGES
from pipelines.stages.tune_cuda import require_gpu_to_tune
from pipelines.storage import storage_errors
from pipelines.target_config import TensorrtLlmJob
from pipelines.tensorrt_llm.installed import installed_version
from pipelines.tracking import Engine, open_tracker
from pipelines.workspace import open_cache
from runtime.tensorrt_library import library_version

R = TypeVar("R")
STAGES = "pipelines.stages"
PLAN_TARGETS = ("tensorrt_rtx", "tensorrt")  # whose engines are plans of a TensorRT library
OPTIONAL_STAGES = ("verify", "bench")  # verify=off and bench=off leave them out


@dataclass(frozen=True)
class Build:
    """What a build made, in the order in which it was made."""

    results: Mapping[str, StageResult]
    bundle: Path


class Runs(Protocol[R]):
    """What takes the stages of a build one by one: the runner, or a plan."""

    def run(self, node: Node, inputs: Mapping[str, R]) -> R: ...


def run_build(config: BuildConfig, console: Console, stages: str = STAGES) -> Build:
    """Build, verify, measure and package one engine.

    Args:
        stages: the package whose modules are the stages.

    Raises:
        EnginewrightError: a stage failed, a gate was not met, or the record of the build could not be kept.
    """
    if config.compile.tune:
        require_gpu_to_tune()
    with ExitStack() as stack:
        stack.enter_context(storage_errors(Path(config.paths.root), "the build"))
        cache = stack.enter_context(open_cache(config))
        tracker = stack.enter_context(open_tracker(config))
        progress = stack.enter_context(BuildProgress(console))
        runner = Runner(cache, config.paths.failed, config.cache, tracker, progress)
        results = run_stages(config, runner, stages)
        bundle = place_bundle(results["package"], config.package.name, config.paths.bundles)
        tracker.engine_packaged(engine_of(config, results), results["package"].metadata)
        return Build(results | run_publish(config, runner, results["package"], stages), bundle)


def run_stages(config: BuildConfig, runner: Runs[R], stages: str = STAGES) -> dict[str, R]:
    """Run, or plan, every stage of one build; the order is that of the life of an engine.

    Raises:
        EnginewrightError: a stage failed, or a target's library is not installed.
    """
    for plan in PLAN_TARGETS:
        if plan in config.target.names:
            library_version(plan)  # or the build would end where its stage is reached
    line = _Line(runner, stages)
    _prepare(config, line)
    _compile(config, line)
    if config.verify.enabled:
        _verify(config.verify, config.target.names, line)
    if config.bench.enabled:
        _bench(config.bench, config.target.names, line)
    line.run("package", config.package, *line.made, check_inputs=True)
    return line.made


class _Line(Generic[R]):
    """The stages of one build so far, by their names."""

    def __init__(self, runner: Runs[R], package: str) -> None:
        self.runner, self.package = runner, package
        self.made: dict[str, R] = {}

    def run(self, name: str, settings: Any, *inputs: str, stage: str = "", source: str = "", **others: Any) -> None:
        """Run one stage.

        Args:
            inputs: the stages before that it takes.
            stage: its module, where that has another name.
            source: the stage that it takes as `fetch`.
            others: the node's other fields.
        """
        node = Node(f"{self.package}.{stage or name}", settings, label=name if stage else "", **others)
        taken = {key: self.made[key] for key in inputs} | ({"fetch": self.made[source]} if source else {})
        self.made[name] = self.runner.run(node, taken)


def _prepare(config: BuildConfig, line: _Line[R]) -> None:
    """The checkpoint, and what drafts for it."""
    line.run("fetch", pinned(config.model), external=local_files(config.model.source))
    line.run("convert", config.convert, "fetch")
    drafting = []
    if config.draft.drafter == "model":
        model = config.draft.model
        line.run("draft_fetch", pinned(model), stage="fetch", external=local_files(model.source))
        line.run("draft_convert", config.convert, stage="convert", source="draft_fetch")
        drafting = ["draft_convert"]
    draft = replace(config.draft, linear=config.target.cpu.linear) if config.target.cpu else config.draft
    line.run("draft", draft, "fetch", "convert", *drafting, external=text_files(config.draft.train.texts))


def _compile(config: BuildConfig, line: _Line[R]) -> None:
    """An engine for each target."""
    model = ("draft_convert",) if "draft_convert" in line.made else ()
    drafting = {"cuda": model, "onnx": ("draft",), "tensorrt_llm": ("draft",)}
    for target in config.target.names:
        settings: Any = getattr(config.target, target)
        if target == "tensorrt_llm":
            settings = TensorrtLlmJob(settings, installed_version())
        line.run(COMPILING_STAGES[target], settings, "convert", *drafting.get(target, ()), target=target)
    if config.compile.tune:
        line.run("tune_cuda", config.compile, "convert", "compile_cuda", target="cuda")


def _verify(config: VerifyConfig, targets: Sequence[str], line: _Line[R]) -> None:
    """The reference, by which each engine that this runtime runs is checked; the CPU's with it."""
    on_cpu = ("compile",) if "cpu" in targets else ()
    line.run("verify", config, "fetch", "convert", *on_cpu, target="cpu")
    for target in _run_here(targets):
        line.run(f"verify_{target}", config, "convert", f"compile_{target}", "verify", target=target)


def _bench(config: BenchConfig, targets: Sequence[str], line: _Line[R]) -> None:
    on_cpu = ("compile",) if "cpu" in targets else ()
    if on_cpu:
        line.run("bench", config, "convert", "draft", "compile", target="cpu")
    beside = {"cuda": ("draft",), "onnx": on_cpu}
    for target in _run_here(targets):
        inputs = ("convert", f"compile_{target}", *beside.get(target, ()))
        line.run(f"bench_{target}", config, *inputs, target=target)


def _run_here(targets: Sequence[str]) -> list[str]:
    """Those, but the CPU's, whose engines this runtime runs where the machine can."""
    return [target for target in targets if target not in ("cpu", "tensorrt_llm")]


def run_publish(config: BuildConfig, runner: Runs[R], package: R, stages: str = STAGES) -> dict[str, R]:
    """Send the packaged bundle where the configuration says, or plan it; nothing where it names no place.

    It comes after the bundle has its own place, which a destination that fails does not take from it.
    """
    if not config.publish.to:
        return {}
    node = Node(f"{stages}.publish", config.publication, always=True)
    return {"publish": runner.run(node, {"package": package})}


def local_files(source: str) -> tuple[Path, ...]:
    """The user's own files that a source names; their change must not go unseen."""
    if not source or source.startswith(SOURCE_SCHEMES):
        return ()
    path = Path(source)
    return tuple(sorted(item for item in path.rglob("*") if item.is_file())) if path.is_dir() else (path,)


def text_files(texts: str) -> tuple[Path, ...]:
    """The user's own files that training reads; a data set of a remote name has none."""
    dataset = parse_dataset(texts)
    if dataset is None:
        return local_files(texts)
    return local_files(dataset.name) if Path(dataset.name).exists() else ()


def engine_of(config: BuildConfig, results: Mapping[str, StageResult]) -> Engine:
    """The packaged engine as tracking records it."""
    targets = ",".join(config.target.names)
    measured = {stage: results[stage].artifact.metrics for stage in OPTIONAL_STAGES if stage in results}
    not_run = ",".join(stage for stage in OPTIONAL_STAGES if stage not in results)
    return Engine(
        name=config.package.name,
        bundle_id=bundle_id(results["package"].artifact.path),
        params={
            "model": config.model.name,
            "precision": config.precision.name,
            "targets": targets,
        }
        | ({"not_run": not_run} if not_run else {}),
        metrics={f"{stage}/{name}": value for stage, metrics in measured.items() for name, value in metrics.items()},
    )
