"""One build, from a configuration to a bundle: which stage gets what from which."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from pipelines.bundles import bundle_id, place_bundle
from pipelines.config import BuildConfig
from pipelines.draft.texts import parse_dataset
from pipelines.keys import Node
from pipelines.loading import SOURCE_SCHEMES
from pipelines.progress import BuildProgress
from pipelines.runner import Runner, StageResult
from pipelines.sources.hub import pinned
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
    made: dict[str, R] = {}
    for plan in PLAN_TARGETS:
        if getattr(config.target, plan) is not None:
            library_version(plan)  # or the build would end where its stage is reached

    def run(name: str, node: Node, *inputs: str, **renamed: str) -> None:
        """`renamed`: what the stage calls an input, and the name under which it was made."""
        made[name] = runner.run(node, {key: made[key] for key in inputs} | {key: made[x] for key, x in renamed.items()})

    run("fetch", Node(f"{stages}.fetch", pinned(config.model), external=local_files(config.model.source)))
    run("convert", Node(f"{stages}.convert", config.convert), "fetch")
    draft = replace(config.draft, linear=config.target.cpu.linear) if config.target.cpu else config.draft
    if config.draft.drafter == "model":
        model = config.draft.model
        run(
            "draft_fetch",
            Node(f"{stages}.fetch", pinned(model), external=local_files(model.source), label="draft_fetch"),
        )
        run("draft_convert", Node(f"{stages}.convert", config.convert, label="draft_convert"), fetch="draft_fetch")
    drafting = ["draft_convert"] if "draft_convert" in made else []
    run(
        "draft",
        Node(f"{stages}.draft", draft, external=text_files(config.draft.train.texts)),
        "fetch",
        "convert",
        *drafting,
    )
    if config.target.cpu is not None:
        run("compile", Node(f"{stages}.compile", config.target.cpu, target="cpu"), "convert")
    if config.target.cuda is not None:
        run("compile_cuda", Node(f"{stages}.compile_cuda", config.target.cuda, target="cuda"), "convert", *drafting)
    if config.target.onnx is not None:
        run("compile_onnx", Node(f"{stages}.compile_onnx", config.target.onnx, target="onnx"), "convert", "draft")
    for plan in PLAN_TARGETS:
        if (settings := getattr(config.target, plan)) is not None:
            run(f"compile_{plan}", Node(f"{stages}.compile_{plan}", settings, target=plan), "convert")
    if config.target.tensorrt_llm is not None:
        job = TensorrtLlmJob(config.target.tensorrt_llm, installed_version())
        node = Node(f"{stages}.compile_tensorrt_llm", job, target="tensorrt_llm")
        run("compile_tensorrt_llm", node, "convert", "draft")
    if config.compile.tune:
        run("tune_cuda", Node(f"{stages}.tune_cuda", config.compile, target="cuda"), "convert", "compile_cuda")
    on_cpu = ["compile"] if "compile" in made else []
    if config.verify.enabled:
        run("verify", Node(f"{stages}.verify", config.verify, target="cpu"), "fetch", "convert", *on_cpu)
        if "compile_cuda" in made:
            node = Node(f"{stages}.verify_cuda", config.verify, target="cuda")
            run("verify_cuda", node, "convert", "compile_cuda", "verify")
        if "compile_onnx" in made:
            node = Node(f"{stages}.verify_onnx", config.verify, target="onnx")
            run("verify_onnx", node, "convert", "compile_onnx", "verify")
        for plan in PLAN_TARGETS:
            if f"compile_{plan}" in made:
                node = Node(f"{stages}.verify_{plan}", config.verify, target=plan)
                run(f"verify_{plan}", node, "convert", f"compile_{plan}", "verify")
    if config.bench.enabled and on_cpu:
        run("bench", Node(f"{stages}.bench", config.bench, target="cpu"), "convert", "draft", "compile")
    if config.bench.enabled and "compile_cuda" in made:
        run("bench_cuda", Node(f"{stages}.bench_cuda", config.bench, target="cuda"), "convert", "draft", "compile_cuda")
    if config.bench.enabled and "compile_onnx" in made:
        run("bench_onnx", Node(f"{stages}.bench_onnx", config.bench, target="onnx"), "convert", "compile_onnx", *on_cpu)
    for plan in PLAN_TARGETS:
        if config.bench.enabled and f"compile_{plan}" in made:
            node = Node(f"{stages}.bench_{plan}", config.bench, target=plan)
            run(f"bench_{plan}", node, "convert", f"compile_{plan}")
    run("package", Node(f"{stages}.package", config.package, check_inputs=True), *made)
    return made


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
