"""One build, from a configuration to a bundle: which stage gets what from which."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.bundles import bundle_id, place_bundle
from pipelines.config import BuildConfig
from pipelines.keys import Node
from pipelines.loading import SOURCE_SCHEMES
from pipelines.progress import BuildProgress
from pipelines.runner import Runner, StageResult
from pipelines.tracking import Engine, open_tracker
from pipelines.workspace import open_cache

STAGES = "pipelines.stages"


@dataclass(frozen=True)
class Build:
    """What a build made, in the order in which it was made."""

    results: Mapping[str, StageResult]
    bundle: Path


def run_build(config: BuildConfig, console: Console, stages: str = STAGES) -> Build:
    """Build, verify, measure and package one engine.

    Args:
        stages: the package whose modules are the stages.

    Raises:
        EnginewrightError: a stage failed, a gate was not met, or the record of the build could not be kept.
    """
    with ExitStack() as stack:
        cache = stack.enter_context(open_cache(config))
        tracker = stack.enter_context(open_tracker(config))
        progress = stack.enter_context(BuildProgress(console))
        runner = Runner(cache, config.paths.failed, config.cache, tracker, progress)
        results = run_stages(config, runner, stages)
        bundle = place_bundle(results["package"], config.package.name, config.paths.bundles)
        if not results["package"].cached:
            tracker.engine_packaged(engine_of(config, results), results["package"].metadata)
        return Build(results, bundle)


def run_stages(config: BuildConfig, runner: Runner, stages: str = STAGES) -> dict[str, StageResult]:
    """Run every stage of one build; the order is that of the life of an engine."""
    made: dict[str, StageResult] = {}

    def run(name: str, node: Node, *inputs: str) -> None:
        made[name] = runner.run(node, {key: made[key] for key in inputs})

    run("fetch", Node(f"{stages}.fetch", config.model, external=local_files(config.model.source)))
    run("convert", Node(f"{stages}.convert", config.convert), "fetch")
    run(
        "draft",
        Node(f"{stages}.draft", config.draft, external=local_files(config.draft.train.texts)),
        "fetch",
        "convert",
    )
    run("compile", Node(f"{stages}.compile", config.target.cpu, target="cpu"), "convert")
    run("verify", Node(f"{stages}.verify", config.verify, target="cpu"), "fetch", "convert", "compile")
    run("bench", Node(f"{stages}.bench", config.bench, target="cpu"), "convert", "compile")
    run("package", Node(f"{stages}.package", config.package, check_inputs=True), *made)
    return made


def local_files(source: str) -> tuple[Path, ...]:
    """The user's own files that a source names; their change must not go unseen."""
    if not source or source.startswith(SOURCE_SCHEMES):
        return ()
    path = Path(source)
    return tuple(sorted(item for item in path.rglob("*") if item.is_file())) if path.is_dir() else (path,)


def engine_of(config: BuildConfig, results: Mapping[str, StageResult]) -> Engine:
    """The packaged engine as tracking records it."""
    targets = ",".join(config.target.names)
    gated = {stage: results[stage].artifact.metrics for stage in ("verify", "bench")}
    return Engine(
        name=config.package.name,
        bundle_id=bundle_id(results["package"].artifact.path),
        params={
            "model": config.model.name,
            "precision": config.precision.name,
            "targets": targets,
        },
        metrics={f"{stage}/{name}": value for stage, metrics in gated.items() for name, value in metrics.items()},
    )
