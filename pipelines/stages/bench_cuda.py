"""Measure the CUDA engine on this machine's GPU, alone; without one, say so. Baselines are bench/'s."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pipelines.config import BenchConfig
from pipelines.hardware import fingerprint
from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.formats.attestations import NOT_RUN


class BenchCudaStage:
    name = "bench_cuda"
    libraries = ("torch", "tokenizers", "matplotlib")
    hardware_bound = True
    resources: tuple[Path, ...] = ()

    def run(
        self, config: BenchConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write samples.jsonl and summary.json."""
        import torch

        from pipelines.benchmark.stack import measure_stack
        from runtime.benchmark.samples import summarise
        from runtime.benchmark.settings import SuiteSettings
        from runtime.benchmark.suite import run_suite, to_samples
        from runtime.benchmark.systems import EngineSystem
        from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
        from runtime.formats.engine_plan import EnginePlan
        from runtime.loading import load_engine
        from runtime.machine import cpu_model
        from runtime.targets import why_not_run
        from runtime.text.tokenizer import Tokenizer

        if reason := why_not_run("cuda"):
            text = f"{reason}; on a machine that has one: python -m runtime bench BUNDLE --target cuda"
            (out_dir / "summary.json").write_text(json.dumps({NOT_RUN: text}, indent=2) + "\n", encoding="utf-8")
            return StageOutput(summary=f"NOT RUN: {reason}")
        checkpoint, engine_dir = Checkpoint(inputs["convert"].path), inputs["compile_cuda"].path
        settings = SuiteSettings(
            config.batch_sizes, config.prompt_lens, config.new_tokens, config.repeats, config.warmups,
            config.mixed_requests,
        ).fitted(EnginePlan.read(engine_dir).max_seq_len)  # fmt: skip
        engine = load_engine(checkpoint, engine_dir, Tokenizer(checkpoint.path / TOKENIZER_DIR))
        runs = list(run_suite({"enginewright": EngineSystem(engine)}, settings, checkpoint.spec.vocab_size,
                              lambda share, text: context.progress.advance(share, text=text)))  # fmt: skip
        rows = summarise(sample for run in runs for sample in to_samples(run))
        lines = "".join(json.dumps(asdict(run)) + "\n" for run in runs)
        (out_dir / "samples.jsonl").write_text(lines, encoding="utf-8")
        summary = {"settings": asdict(settings), "dtype": checkpoint.config.dtype, "cpu": cpu_model(),
                   "hardware": fingerprint(), "rows": [asdict(row) for row in rows]}  # fmt: skip
        if config.stack.enabled:
            draft_dir = inputs["draft"].path if "draft" in inputs else None
            stack = measure_stack(
                checkpoint, engine_dir, draft_dir, None, config.stack.sizes, config.repeats,
                f"{checkpoint.config.dtype} on {torch.cuda.get_device_name()}", out_dir,
                lambda share, text: context.progress.advance(share, text=text),
            )  # fmt: skip
            summary["stack"] = [asdict(row) for row in stack]
        (out_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        speeds = {f"{row.case}_b{row.batch_size}_p{row.prompt_len}_tokens_per_s": row.median
                  for row in rows if row.unit == "tokens/s"}  # fmt: skip
        return StageOutput(metrics=speeds, summary=", ".join(f"{name} {value:.0f}" for name, value in speeds.items()))


STAGE = BenchCudaStage()
