"""What the compile stages of both libraries share: graph, plan, and what the engine says of itself."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.target_config import PlanTargetConfig
from pipelines.tensorrt.job import PlanJob
from runtime.errors import EnginewrightError
from runtime.tensorrt_library import DISTRIBUTIONS, library_version

if TYPE_CHECKING:
    from pipelines.tensorrt.building import BuiltPlan
    from runtime.formats.checkpoint import Checkpoint
    from runtime.formats.engine_plan import EnginePlan
    from runtime.formats.tensorrt_plan import TensorrtPlan
    from runtime.spec import ModelSpec

Config = TypeVar("Config", bound=PlanTargetConfig)
# Longest request where nobody says: every step goes over all rows of its caches.
USUAL_SEQ_LEN = 2048
NO_FUSED_KERNEL = "not supported by a dedicated kernel"  # in the libraries' reasons


@dataclass(frozen=True)
class PlanOptions:
    """What the libraries differ in. The job's profiles are filled in later."""

    job: PlanJob
    archs: tuple[str, ...]
    attention: str


class CompilePlanStage(ABC, Generic[Config]):
    """A stage whose engine is one plan."""

    name: str
    library: str
    hardware_bound = False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Raises EnginewrightError where the library is missing: without it there is no key."""
        library_version(self.library)
        return (DISTRIBUTIONS[self.library], "onnx")

    @abstractmethod
    def options(self, config: Config, spec: "ModelSpec", context: StageContext) -> PlanOptions: ...

    def run(
        self, config: Config, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:  # fmt: skip
        """Write engine.json, plan.json, model.onnx, model.plan and layers.json.

        Raises:
            EnginewrightError: limits that the model cannot keep, a graph or setting that the library refuses.
        """
        from pipelines.tensorrt.building import build_plan
        from pipelines.tensorrt.profiles import step_profiles
        from plugins.cuda.archs import MINIMUM_DRIVER
        from runtime.formats.checkpoint import Checkpoint
        from runtime.formats.tensorrt_plan import LAYERS_FILE, PLAN_FILE, TensorrtPlan, weights_digest

        checkpoint = Checkpoint(inputs["convert"].path)
        engine = _engine_plan(self.library, config, checkpoint)
        options = self.options(config, checkpoint.spec, context)
        _write_graph(checkpoint, engine, out_dir, context.scratch_dir, options.job.plugins)
        profiles = step_profiles(engine.max_batch_size, engine.max_num_tokens)
        job = replace(options.job, profiles=profiles)
        try:
            built = build_plan(job, context.scratch_dir, context)
        except EnginewrightError as error:
            if NO_FUSED_KERNEL not in str(error):
                raise
            raise EnginewrightError(
                f"{self.library} {library_version(self.library)} has no fused attention kernel for {engine.dtype} and "
                f"this model's head_dim, {checkpoint.spec.head_dim}; leave {self.library} out of target=[...]"
            ) from error
        (context.scratch_dir / PLAN_FILE).replace(out_dir / PLAN_FILE)
        plan = TensorrtPlan(
            library=self.library, version=library_version(self.library), archs=options.archs,
            weights=config.weights, weights_sha256=weights_digest(checkpoint.path), attention=options.attention,
            cache_len=engine.block_size, profiles=profiles, minimum_driver=str(MINIMUM_DRIVER),
            version_compatible=job.version_compatible, hardware=job.hardware,
        )  # fmt: skip
        engine.write(out_dir)
        plan.write(out_dir)
        lines = ",\n".join(json.dumps(layer) for layer in built.layers)
        (out_dir / LAYERS_FILE).write_text(f"[{lines}]\n", encoding="utf-8")
        counts = Counter(layer["type"] for layer in built.layers)
        for kind, count in counts.most_common():
            context.log.info("%-24s %5d layers", kind, count)
        return StageOutput(metrics=_metrics(built, counts, checkpoint), summary=_summary(built, plan, engine))


def _engine_plan(target: str, config: PlanTargetConfig, checkpoint: "Checkpoint") -> "EnginePlan":
    from runtime.backends.slots.backend import cache_len_for
    from runtime.formats.engine_plan import EnginePlan

    longest = checkpoint.spec.max_position_embeddings
    if config.max_seq_len > longest:
        raise EnginewrightError(
            f"target.{target}.max_seq_len is {config.max_seq_len}; the model was trained for at most {longest} tokens"
        )
    max_seq_len = config.max_seq_len or min(longest, USUAL_SEQ_LEN)
    return EnginePlan(
        target=target, dtype=checkpoint.config.dtype, linear="torch", max_batch_size=config.max_batch_size,
        max_seq_len=max_seq_len, max_num_tokens=min(config.max_num_tokens, max_seq_len),
        block_size=cache_len_for(max_seq_len), num_blocks=config.max_batch_size,
    )  # fmt: skip


def _write_graph(checkpoint: "Checkpoint", plan: "EnginePlan", out_dir: Path, scratch: Path, plugins: bool) -> None:
    """Write the graph, and link it and its weights into the folder where the plan is built."""
    from pipelines.onnx.graph import GraphOptions, step_model
    from pipelines.tensorrt.plugin_nodes import with_plugins
    from runtime.formats.checkpoint import WEIGHTS_FILE
    from runtime.formats.step_graph import GRAPH_FILE

    model = step_model(checkpoint, GraphOptions(dtype=plan.dtype, cache_len=plan.block_size))
    if plugins:
        model = with_plugins(model, checkpoint.spec.head_dim)
    written = model.SerializeToString(deterministic=True)
    (out_dir / GRAPH_FILE).write_bytes(written)
    for name, target in ((GRAPH_FILE, out_dir / GRAPH_FILE), (WEIGHTS_FILE, checkpoint.path / WEIGHTS_FILE)):
        (scratch / name).unlink(missing_ok=True)
        (scratch / name).symlink_to(target.resolve())


def _metrics(built: "BuiltPlan", counts: Mapping[str, int], checkpoint: "Checkpoint") -> dict[str, float]:
    weights_bytes = (checkpoint.path / "weights.safetensors").stat().st_size
    return {
        "plan_bytes": float(built.plan_bytes),
        "weights_bytes": float(weights_bytes),
        "build_peak_bytes": float(built.peak_bytes),
        "build_peak_anonymous_bytes": float(built.peak_anonymous_bytes),
        "build_peak_anonymous_to_weights_ratio": built.peak_anonymous_bytes / weights_bytes,
        "layers": float(len(built.layers)),
    } | {f"layers_{kind.lower()}": float(count) for kind, count in counts.items()}


def _summary(built: "BuiltPlan", plan: "TensorrtPlan", engine: "EnginePlan") -> str:
    return (
        f"{plan.library} {plan.version}, {engine.dtype}, {', '.join(plan.archs) or 'no GPU'}, "
        f"{built.plan_bytes / 1e6:.1f} MB, weights {plan.weights}, attention {plan.attention}, context "
        f"{engine.max_seq_len}, batch {engine.max_batch_size}; built in {built.peak_bytes / 1e6:.0f} MB, "
        f"{built.peak_anonymous_bytes / 1e6:.0f} of it not of files"
    )
