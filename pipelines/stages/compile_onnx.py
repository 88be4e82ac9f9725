"""Compile for ONNX Runtime: the graph of a step, over the weights where they are, and proof that it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.target_config import OnnxTargetConfig
from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from runtime.formats.engine_plan import EnginePlan
    from runtime.spec import ModelSpec

USUAL_SEQ_LEN = 4096  # where the configuration does not say, as a slot is as long as the longest request


class CompileOnnxStage:
    name = "compile_onnx"
    libraries = ("onnx", "onnxruntime", "torch")
    hardware_bound = False
    resources: tuple[Path, ...] = ()

    def run(
        self, config: OnnxTargetConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write engine.json and model.onnx, and draft.onnx where a head drafts.

        Raises:
            EnginewrightError: limits that the model cannot keep, or a graph that ONNX Runtime does not take.
        """
        import torch

        from pipelines.onnx.draft_graph import write_draft_model
        from pipelines.onnx.graph import GraphOptions, write_step_model
        from runtime.engine import Engine
        from runtime.formats.checkpoint import Checkpoint
        from runtime.formats.draft_graph import DRAFT_GRAPH_FILE
        from runtime.onnx_engine import make_onnx_backend
        from runtime.scoring import score
        from runtime.speculation.redrafter.head_file import HEAD_FILE
        from runtime.speculation.redrafter.onnx_head import load_onnx_redrafter

        checkpoint = Checkpoint(inputs["convert"].path)
        plan = _plan(config, checkpoint.spec)
        context.progress.advance(0.2, text="writing the graph")
        graph = write_step_model(checkpoint, GraphOptions(plan.dtype, plan.block_size, slices_cache=True), out_dir)
        context.progress.advance(0.4, text="loading it")
        engine = Engine(make_onnx_backend(checkpoint, plan, out_dir))
        context.progress.advance(0.8, text="trying one pass")
        if not bool(torch.isfinite(score(engine, [0, 1, 2])).all()):
            raise EnginewrightError("the engine's first pass gave logits that are not finite; are the weights damaged?")
        plan.write(out_dir)
        if (inputs["draft"].path / HEAD_FILE).is_file():
            write_draft_model(inputs["draft"].path, checkpoint, plan.dtype, out_dir)
            load_onnx_redrafter(out_dir / DRAFT_GRAPH_FILE, inputs["draft"].path, checkpoint)
        slot_bytes = plan.block_bytes(checkpoint.spec)
        return StageOutput(
            metrics={"graph_bytes": graph.stat().st_size, "kv_cache_bytes": plan.kv_cache_bytes(checkpoint.spec)},
            summary=f"onnx, {plan.dtype}, graph of {graph.stat().st_size / 1e6:.1f} MB, context {plan.max_seq_len}, "
            f"batch {plan.max_batch_size}, {plan.num_blocks} slots of up to {slot_bytes / 2**20:.0f} MiB",
        )


def _plan(config: OnnxTargetConfig, spec: "ModelSpec") -> "EnginePlan":
    from runtime.backends.slots.backend import cache_len_for
    from runtime.formats.engine_plan import EnginePlan

    longest = spec.max_position_embeddings
    if config.max_seq_len > longest:
        raise EnginewrightError(
            f"target.onnx.max_seq_len is {config.max_seq_len}; the model was trained for at most {longest} tokens"
        )
    max_seq_len = config.max_seq_len or min(longest, USUAL_SEQ_LEN)
    return EnginePlan(
        target="onnx",
        dtype=config.dtype,
        linear="torch",  # of a drafter, which torch runs
        max_batch_size=config.max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=config.max_num_tokens,
        block_size=cache_len_for(max_seq_len),
        num_blocks=config.max_batch_size + config.prefix_slots,
    )


STAGE = CompileOnnxStage()
