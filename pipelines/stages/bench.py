"""Bench: the engine beside transformers, in one process and one run, raw samples kept."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import BenchConfig
from pipelines.data import DRAFT_PROMPTS_FILE, TEXT_FILE
from pipelines.hardware import fingerprint
from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.machine import cpu_model

if TYPE_CHECKING:
    from runtime.benchmark.samples import SummaryRow
    from runtime.benchmark.speculation import SpeculationRow
    from runtime.benchmark.suite import RawRun
    from runtime.benchmark.systems import System
    from runtime.benchmark.workloads import Workload
    from runtime.engine import Engine
    from runtime.formats.checkpoint import Checkpoint

ENGINE, BASELINE = "enginewright", "transformers"


class BenchStage:
    name = "bench"
    libraries = ("torch", "transformers", "tokenizers", "matplotlib")
    hardware_bound = True
    resources: tuple[Path, ...] = (DRAFT_PROMPTS_FILE, TEXT_FILE)

    def run(
        self, config: BenchConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write samples.jsonl (every timed run), summary.json and a plot per case."""
        from pipelines.benchmark.arrivals import arrival_curves, arrival_metrics
        from pipelines.benchmark.plots import write_plots
        from runtime.benchmark.samples import summarise
        from runtime.benchmark.settings import SuiteSettings
        from runtime.benchmark.suite import run_suite, to_samples
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
        engine, systems, peak_bytes = _load(checkpoint, inputs["compile"].path, config.baseline, largest)
        runs = []
        with (out_dir / "samples.jsonl").open("w", encoding="utf-8") as file:
            for run in run_suite(systems, settings, checkpoint.spec.vocab_size, _part(context, 0.0, 0.6)):
                runs.append(run)
                file.write(json.dumps(_raw_line(run)) + "\n")
        rows = summarise(sample for run in runs for sample in to_samples(run))
        subtitle = f"{checkpoint.config.dtype} on {cpu_model()}"
        write_plots(rows, subtitle, out_dir)
        speculation = _speculation(config, engine, checkpoint, inputs, out_dir, _part(context, 0.6, 0.8))
        arrivals = _arrivals(config, engine, checkpoint, subtitle, out_dir, _part(context, 0.8, 0.9))
        stack = _stack(config, systems.get(BASELINE), checkpoint, inputs, subtitle, out_dir, _part(context, 0.9, 1.0))
        summary = {"settings": asdict(settings), "dtype": checkpoint.config.dtype, "cpu": cpu_model(),
                   "hardware": fingerprint(), "engine_peak_added_bytes": peak_bytes,
                   "rows": [asdict(row) for row in rows], "speculation": [asdict(row) for row in speculation],
                   **arrivals, **stack}  # fmt: skip
        (out_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return StageOutput(
            metrics=_metrics(rows, peak_bytes) | _speculation_metrics(speculation) | arrival_metrics(arrivals),
            summary=_headline(rows, speculation),
            curves=arrival_curves(arrivals),
        )


def _part(context: StageContext, start: float, end: float) -> Callable[[float, str], None]:
    """A progress callback over one share of the stage's bar."""

    def report(fraction: float, text: str) -> None:
        context.progress.advance(start + (end - start) * fraction, text=text)
        context.log.info(text)

    return report


def _speculation(
    config: BenchConfig, engine: "Engine", checkpoint: "Checkpoint", inputs: Mapping[str, Artifact], out_dir: Path,
    report: Callable[[float, str], None],
) -> list["SpeculationRow"]:  # fmt: skip
    """Plain decoding beside the bundle's drafter and prompt lookup; nothing where the settings leave it out."""
    from pipelines.benchmark.speculation import measure_speculation

    if not config.speculation_prompts:
        return []
    draft_dir = inputs["draft"].path if "draft" in inputs else None
    return measure_speculation(
        engine, checkpoint, inputs["compile"].path, draft_dir, config.speculation_prompts, config.speculation_tokens,
        config.repeats, out_dir, report,
    )  # fmt: skip


def _arrivals(
    config: BenchConfig, engine: "Engine", checkpoint: "Checkpoint", subtitle: str, out_dir: Path,
    report: Callable[[float, str], None],
) -> dict[str, Any]:  # fmt: skip
    from pipelines.benchmark.arrivals import measure_arrivals

    if not config.arrivals:
        return {}
    vocab_size = checkpoint.spec.vocab_size
    return measure_arrivals(engine.backend, vocab_size, config.repeats, subtitle, out_dir, report)


def _stack(
    config: BenchConfig, naive: "System | None", checkpoint: "Checkpoint", inputs: Mapping[str, Artifact],
    subtitle: str, out_dir: Path, report: Callable[[float, str], None],
) -> dict[str, Any]:  # fmt: skip
    from pipelines.benchmark.stack import measure_stack

    if not config.stack.enabled:
        return {}
    draft_dir = inputs["draft"].path if "draft" in inputs else None
    rows = measure_stack(
        checkpoint, inputs["compile"].path, draft_dir, naive, config.stack.sizes, config.repeats, subtitle, out_dir,
        report,
    )  # fmt: skip
    return {"stack": [asdict(row) for row in rows]}


def _load(
    checkpoint: "Checkpoint", engine_dir: Path, baseline: bool, largest: "Workload"
) -> tuple["Engine", dict[str, "System"], int | None]:
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
        engine = Engine(make_backend(checkpoint, EnginePlan.read(engine_dir)))
        EngineSystem(engine).run(largest)
    systems: dict[str, System] = {ENGINE: EngineSystem(engine)}
    if baseline:
        systems[BASELINE] = TransformersBaseline.load(checkpoint, checkpoint.config.dtype)
    return engine, systems, peak.added_bytes


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


def _speculation_metrics(rows: list["SpeculationRow"]) -> dict[str, float]:
    """By drafter and kind of prompt: accepted length in tokens per step, and tokens/s over plain decoding's."""
    metrics: dict[str, float] = {}
    for row in rows:
        key = f"speculation_{row.drafting}_{row.kind}"
        metrics |= {f"{key}_accepted_length": row.accepted_length, f"{key}_tokens_per_s": row.tokens_per_s,
                    f"{key}_ratio_to_plain": row.ratio, f"{key}_equal_share": row.equal_share}  # fmt: skip
    return metrics


def _headline(rows: list["SummaryRow"], speculation: list["SpeculationRow"]) -> str:
    """The smallest decode case, the mixed one, and the first drafter over all prompts."""
    ours = [row for row in rows if row.system == ENGINE and row.unit == "tokens/s"]
    decode = next(row for row in ours if row.case == "decode")
    mixed = next(row for row in ours if row.case == "mixed")

    def figure(row: "SummaryRow") -> str:
        ratio = f" ({row.ratio:.2f}x transformers)" if row.ratio is not None else ""
        return f"{row.median:.0f} tok/s{ratio}"

    drafted = [row for row in speculation if row.kind == "all" and row.drafting != "off"][:1]
    return f"decode b{decode.batch_size} {figure(decode)}, {mixed.batch_size} mixed requests {figure(mixed)}" + "".join(
        f", {row.drafting} {row.ratio:.2f}x plain (accepted length {row.accepted_length:.2f})" for row in drafted
    )


STAGE = BenchStage()
