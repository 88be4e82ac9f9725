"""Compile for TensorRT-LLM: its checkpoint or model folder, the exact command, and the engine where it is installed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.target_config import TensorrtLlmJob

if TYPE_CHECKING:
    from pipelines.tensorrt_llm.folders import Folder
    from runtime.formats.tensorrt_llm import TensorrtLlmPlan


class CompileTensorrtLlmStage:
    name = "compile_tensorrt_llm"
    libraries = ("PyYAML", "safetensors", "torch", "transformers")
    resources: tuple[Path, ...] = ()

    @property
    def hardware_bound(self) -> bool:
        """An engine that is built here is this GPU's."""
        from pipelines.tensorrt_llm.installed import installed_version

        return bool(installed_version())

    def run(
        self, config: TensorrtLlmJob, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write engine.json and what TensorRT-LLM reads; build the engine where the version asked for is installed.

        Raises:
            EnginewrightError: version, model and settings do not go together, or trtllm-build failed.
        """
        from pipelines.tensorrt_llm import checks
        from pipelines.tensorrt_llm.building import build_engine, is_built_here
        from pipelines.tensorrt_llm.folders import Folder, write_build_folder, write_serve_folder
        from pipelines.tensorrt_llm.scripts import SCRIPTS
        from pipelines.tensorrt_llm.speculation import choose_speculation
        from pipelines.tensorrt_llm.versions import flow_of
        from runtime.formats.checkpoint import Checkpoint
        from runtime.formats.tensorrt_llm import TensorrtLlmPlan

        checkpoint = Checkpoint(inputs["convert"].path)
        target, spec = config.target, checkpoint.spec
        flow = flow_of(target.version)
        checks.check_split(target, spec)
        if flow == "build":
            checks.check_engine(target, spec)
        speculation = choose_speculation(target, spec, inputs["draft"].path)
        if speculation.reason:
            context.log.warning("no drafts: %s", speculation.reason)
        lengths = checks.lengths_of(target, spec)
        folder = Folder(target, lengths, checkpoint, inputs["draft"].path, speculation, out_dir, context.scratch_dir)
        write = write_build_folder if flow == "build" else write_serve_folder
        command = write(folder, lambda share, text: context.progress.advance(0.7 * share, text=text))
        context.log.info("command: %s", " ".join(command))
        built_for = build_engine(folder, context) if flow == "build" and is_built_here(config) else ""
        plan = TensorrtLlmPlan(
            version=target.version, flow=flow, dtype=checkpoint.config.dtype, max_batch_size=target.max_batch_size,
            max_seq_len=lengths.max_seq_len, max_num_tokens=target.max_num_tokens, tp_size=target.tp_size,
            pp_size=target.pp_size, weights=target.weights, speculation=speculation.kind,
            without_drafter=speculation.reason, built_for=built_for, script=SCRIPTS[flow], command=tuple(command),
            settings=asdict(target),
        )  # fmt: skip
        plan.write(out_dir)
        return StageOutput(metrics=_metrics(folder), summary=_summary(plan, config.installed))


def _metrics(folder: "Folder") -> dict[str, float]:
    sizes = {path: path.stat().st_size for path in folder.out_dir.rglob("*") if path.is_file()}
    engines = sum(size for path, size in sizes.items() if path.suffix == ".engine")
    return {"tensorrt_llm_bytes": float(sum(sizes.values())), "engine_bytes": float(engines)}


def _summary(plan: "TensorrtLlmPlan", installed: str) -> str:
    ranks = f"tp {plan.tp_size}, pp {plan.pp_size}"
    text = f"TensorRT-LLM {plan.version}, {plan.dtype}, {ranks}, context {plan.max_seq_len}, drafts {plan.speculation}"
    if plan.flow == "serve":
        return f"{text}; serve it with {plan.script}"
    if plan.built_for:
        return f"{text}, engine for {plan.built_for}"
    here = f"{installed} is installed here" if installed else "it is not installed here"
    return f"{text}; NOT BUILT: {here}; {plan.script} builds it"


STAGE = CompileTensorrtLlmStage()
