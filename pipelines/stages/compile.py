"""Compile for the CPU: decide how the shared weights are run, and prove that they run."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.target_config import CpuTargetConfig
from runtime.errors import EnginewrightError

# Enough for a full batch of usual requests where the configuration does not say.
USUAL_TOKENS_PER_REQUEST = 2048


class CompileStage:
    name = "compile"
    libraries = ("torch",)
    hardware_bound = False
    resources: tuple[Path, ...] = ()

    def run(
        self, config: CpuTargetConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write engine.json.

        Raises:
            EnginewrightError: limits that the model or this machine cannot keep.
        """
        import torch

        from runtime.engine import Engine
        from runtime.formats.checkpoint import Checkpoint
        from runtime.formats.engine_plan import EnginePlan
        from runtime.loading import make_backend
        from runtime.scoring import score

        checkpoint = Checkpoint(inputs["convert"].path)
        longest = checkpoint.spec.max_position_embeddings
        if config.max_seq_len > longest:
            raise EnginewrightError(
                f"target.cpu.max_seq_len is {config.max_seq_len}; the model was trained for at most {longest} tokens"
            )
        max_seq_len = config.max_seq_len or longest
        tokens = config.kv_cache_tokens or max(max_seq_len, config.max_batch_size * USUAL_TOKENS_PER_REQUEST)
        plan = EnginePlan(
            dtype=checkpoint.config.dtype,
            linear=config.linear,  # type: ignore[arg-type] # the plan checks it
            max_batch_size=config.max_batch_size,
            max_seq_len=max_seq_len,
            max_num_tokens=config.max_num_tokens,
            block_size=config.block_size,
            num_blocks=-(-tokens // config.block_size),
        )
        context.progress.advance(0.2, text="loading the engine")
        engine = Engine(make_backend(checkpoint, plan))
        context.progress.advance(0.8, text="trying one pass")
        if not bool(torch.isfinite(score(engine, [0, 1, 2])).all()):
            raise EnginewrightError("the engine's first pass gave logits that are not finite; are the weights damaged?")
        plan.write(out_dir)
        kv_bytes = plan.kv_cache_bytes(checkpoint.spec)
        return StageOutput(
            metrics={"kv_cache_bytes": kv_bytes, "kv_cache_tokens": plan.num_blocks * plan.block_size},
            summary=f"cpu, {plan.dtype}, {plan.linear} linears, context {max_seq_len}, batch {plan.max_batch_size}, "
            f"KV cache up to {kv_bytes / 2**20:.0f} MiB",
        )


STAGE = CompileStage()
