"""Bench: the engine beside transformers, in one process and one run, raw samples kept."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import BenchConfig
from pipelines.hardware import fingerprint
from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.machine import cpu_model

if TYPE_CHECKING:
    from runtime.benchmark.samples import SummaryRow
    from runtime.benchmark.suite import RawRun
    from runtime.benchmark.systems import System
    from runtime.benchmark.workloads import Workload
    from runtime.formats.checkpoint import Checkpoint

ENGINE, BASELINE = "enginewright", "transformers"


class BenchStage:
    name = "bench"
    libraries = ("torch", "transformers", "tokenizers", "matplotlib")
    hardware_bound = True
    resources: tuple[Path, ...] = ()

    def run(
        self, config: BenchConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write samples.jsonl (every timed run), summary.json and a plot per case."""
        from pipelines.benchmark.plots import write_plots
        from runtime.benchmark.samples import summarise
        from runtime.benchmark.suite import SuiteSettings, run_suite, to_samples
        from runtime.benchmark.workloads import uniform_workload
        from runtime.formats.checkpoint import Checkpoint
        from runtime.formats.engine_plan import EnginePlan

        checkpoint = Checkpoint(inputs["convert"].path)
        settings = SuiteSettings(
            config.batch_sizes, config.prompt_lens, config.new_tokens, config.repeats, config.warmups,
            config.mixed_requests,
        ).fitted(EnginePlan.read(inputs["compile"].path).max_seq_len)  # fmt: skip
        if settings.prompt_lens != config.prompt_lens:
            context.log.info("the engine's context holds prompts of %s alone", settings.prompt_lens)
        largest = uniform_workload(
            max(config.batch_sizes), max(settings.prompt_lens), config.new_tokens, checkpoint.spec.vocab_size
        )
        context.progress.advance(0.0, text="loading the engine" + (" and transformers" if config.baseline else ""))
        systems, peak_bytes = _load(checkpoint, inputs["compile"].path, config.baseline, largest)

        def report(fraction: float, text: str) -> None:
            context.progress.advance(fraction, text=text)
            context.log.info(text)

        runs = []
        with (out_dir / "samples.jsonl").open("w", encoding="utf-8") as file:
            for run in run_suite(systems, settings, checkpoint.spec.vocab_size, report):
                runs.append(run)
                file.write(json.dumps(_raw_line(run)) + "\n")
        rows = summarise(sample for run in runs for sample in to_samples(run))
        summary = {"settings": asdict(settings), "dtype": checkpoint.config.dtype, "cpu": cpu_model(),
                   "hardware": fingerprint(), "engine_peak_added_bytes": peak_bytes,
                   "rows": [asdict(row) for row in rows]}  # fmt: skip
        (out_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        write_plots(rows, f"{checkpoint.config.dtype} on {cpu_model()}", out_dir)
        return StageOutput(metrics=_metrics(rows, peak_bytes), summary=_headline(rows))


def _load(
    checkpoint: "Checkpoint", engine_dir: Path, baseline: bool, largest: "Workload"
) -> tuple[dict[str, "System"], int | None]:
    """Load every system; also the peak memory that our engine adds, loaded first and run once on `largest`.

    What a second system adds to the same process says little, as it takes over what the first one freed.
    """
    from pipelines.benchmark.baseline import TransformersBaseline
    from runtime.benchmark.memory import peak_memory
    from runtime.benchmark.systems import EngineSystem
    from runtime.engine import Engine
    from runtime.formats.engine_plan import EnginePlan
    from runtime.loading import make_backend

    with peak_memory() as peak:
        engine = EngineSystem(Engine(make_backend(checkpoint, EnginePlan.read(engine_dir))))
        engine.run(largest)
    systems: dict[str, System] = {ENGINE: engine}
    if baseline:
        systems[BASELINE] = TransformersBaseline.load(checkpoint, checkpoint.config.dtype)
    return systems, peak.added_bytes


def _raw_line(run: "RawRun") -> dict[str, Any]:
    return {"system": run.system, "batch_size": run.batch_size, "prompt_len": run.prompt_len, "repeat": run.repeat,
            **asdict(run.timings)}  # fmt: skip


def _metrics(rows: list["SummaryRow"], peak_bytes: int | None) -> dict[str, float]:
    """The engine's medians and ratios by case, batch and prompt length, with units in their names."""
    metrics: dict[str, float] = {} if peak_bytes is None else {"engine_peak_added_bytes": peak_bytes}
    for row in rows:
        if row.system == ENGINE:
            key = f"{row.case}_b{row.batch_size}" + (f"_p{row.prompt_len}" if row.prompt_len else "")
            unit = "tokens_per_s" if row.unit == "tokens/s" else "ms"
            metrics[f"{key}_{unit}"] = row.median
            if row.ratio is not None and row.unit == "tokens/s":
                metrics[f"{key}_ratio_to_transformers"] = row.ratio
    return metrics


def _headline(rows: list["SummaryRow"]) -> str:
    """The smallest decode case and the mixed one."""
    ours = [row for row in rows if row.system == ENGINE and row.unit == "tokens/s"]
    decode = next(row for row in ours if row.case == "decode")
    mixed = next(row for row in ours if row.case == "mixed")

    def figure(row: "SummaryRow") -> str:
        ratio = f" ({row.ratio:.2f}x transformers)" if row.ratio is not None else ""
        return f"{row.median:.0f} tok/s{ratio}"

    return f"decode b{decode.batch_size} {figure(decode)}, {mixed.batch_size} mixed requests {figure(mixed)}"


STAGE = BenchStage()
