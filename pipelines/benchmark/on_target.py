"""Measure another engine than the CPU's, beside that one where the machine runs both; where it cannot run, say so."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import BenchConfig
from pipelines.hardware import fingerprint
from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.formats.attestations import NOT_RUN

if TYPE_CHECKING:
    from runtime.formats.checkpoint import Checkpoint

ENGINE, CPU_ENGINE = "enginewright", "enginewright_cpu"


class BenchOnTarget:
    """The stage `bench_<target>`; its engine is that of the stage `compile_<target>`.

    An input `compile` is the CPU's engine, which is measured in the same run; `draft` is what the stack of switches
    drafts with.
    """

    hardware_bound = True
    resources: tuple[Path, ...] = ()

    def __init__(self, target: str, libraries: tuple[str, ...] = (), has_stack: bool = False) -> None:
        """`has_stack`: whether the engine has the switches that `bench.stack` turns one by one."""
        self.target = target
        self.has_stack = has_stack
        self.name = f"bench_{target}"
        self.libraries = ("torch", "tokenizers", *libraries)

    def run(
        self, config: BenchConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write samples.jsonl and summary.json."""
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

        if reason := why_not_run(self.target):
            text = f"{reason}; on a machine that has one: python -m runtime bench BUNDLE --target {self.target}"
            (out_dir / "summary.json").write_text(json.dumps({NOT_RUN: text}, indent=2) + "\n", encoding="utf-8")
            return StageOutput(summary=f"NOT RUN: {reason}")
        checkpoint, engine_dir = Checkpoint(inputs["convert"].path), inputs[f"compile_{self.target}"].path
        plan = EnginePlan.read(engine_dir)
        settings = SuiteSettings(
            config.batch_sizes, config.prompt_lens, config.new_tokens, config.repeats, config.warmups,
            config.mixed_requests,
        ).fitted(plan.max_seq_len)  # fmt: skip
        tokenizer = Tokenizer(checkpoint.path / TOKENIZER_DIR)
        systems = {ENGINE: EngineSystem(load_engine(checkpoint, engine_dir, tokenizer))}
        if "compile" in inputs:
            systems[CPU_ENGINE] = EngineSystem(load_engine(checkpoint, inputs["compile"].path, tokenizer))
        runs = list(run_suite(systems, settings, checkpoint.spec.vocab_size,
                              lambda share, text: context.progress.advance(share, text=text)))  # fmt: skip
        rows = summarise(sample for run in runs for sample in to_samples(run))
        lines = "".join(json.dumps(asdict(run)) + "\n" for run in runs)
        (out_dir / "samples.jsonl").write_text(lines, encoding="utf-8")
        summary = {"settings": asdict(settings), "dtype": plan.dtype, "cpu": cpu_model(),
                   "hardware": fingerprint(), "rows": [asdict(row) for row in rows]}  # fmt: skip
        if config.stack.enabled and self.has_stack:
            summary["stack"] = _stack(config, checkpoint, engine_dir, inputs, out_dir, context)
        (out_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        speeds = {f"{row.case}_b{row.batch_size}_p{row.prompt_len}_tokens_per_s": row.median
                  for row in rows if row.unit == "tokens/s" and row.system == ENGINE}  # fmt: skip
        return StageOutput(metrics=speeds, summary=", ".join(f"{name} {value:.0f}" for name, value in speeds.items()))


def _stack(
    config: BenchConfig, checkpoint: "Checkpoint", engine_dir: Path, inputs: Mapping[str, Artifact], out_dir: Path,
    context: StageContext,
) -> list[dict[str, Any]]:  # fmt: skip
    import torch

    from pipelines.benchmark.stack import measure_stack

    draft_dir = inputs["draft"].path if "draft" in inputs else None
    subtitle = f"{checkpoint.config.dtype} on {torch.cuda.get_device_name()}"
    rows = measure_stack(checkpoint, engine_dir, draft_dir, None, config.stack.sizes, config.repeats, subtitle, out_dir,
                         lambda share, text: context.progress.advance(share, text=text))  # fmt: skip
    return [asdict(row) for row in rows]
