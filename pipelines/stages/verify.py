"""Verify: the conversion report, the reference that travels in the bundle, and the engine gate.

Conversion error is reported, engine error is gated: the first is the format's price, the second would be our mistake.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import VerifyConfig
from pipelines.data import PROMPTS_FILE, TEXT_FILE, encode_prompt, load_prompts, load_text
from pipelines.hardware import fingerprint
from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.formats.attestations import NOT_RUN

if TYPE_CHECKING:
    from runtime.formats.checkpoint import Checkpoint
    from runtime.formats.reference import Reference
    from runtime.text.tokenizer import Tokenizer
    from runtime.verification import Gates

REPORT_FILE = "report.json"


class VerifyStage:
    name = "verify"
    libraries = ("torch", "transformers", "tokenizers", "gguf")
    hardware_bound = True
    resources: tuple[Path, ...] = (PROMPTS_FILE, TEXT_FILE)

    def run(
        self, config: VerifyConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write report.json, reference.safetensors and prompts.json.

        Raises:
            EnginewrightError: a gate failed; the report is written all the same.
        """
        from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
        from runtime.loading import load_engine
        from runtime.text.tokenizer import Tokenizer
        from runtime.verification import Gates, figures_json, require_gates, verify_engine

        checkpoint = Checkpoint(inputs["convert"].path)
        tokenizer = Tokenizer(checkpoint.path / TOKENIZER_DIR)
        reference = _make_reference(config, checkpoint, tokenizer, out_dir, _part(context, 0.0, 0.5))
        conversion = _conversion(inputs["fetch"].path, checkpoint, reference, _part(context, 0.5, 0.8))
        gates = Gates(**vars(config.gates))
        if "compile" not in inputs:
            return _without_engine(out_dir, gates, conversion, reference)
        engine = load_engine(checkpoint, inputs["compile"].path, tokenizer)
        figures = verify_engine(engine, reference, _part(context, 0.8, 1.0))
        report = {"engine": figures_json(figures, gates), "conversion": conversion,
                  "baseline": asdict(reference.baseline), "hardware": fingerprint()}  # fmt: skip
        (out_dir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        require_gates(figures, gates)
        logits = figures.logits
        return StageOutput(
            metrics={
                "greedy_agreement_share": logits.greedy_agreement,
                "mean_kl_nats": logits.mean_kl_nats,
                "max_logit_diff": logits.max_logit_diff,
                "near_tie_flips": logits.near_tie_flips,
                "hard_flips": logits.hard_flips + figures.hard_divergences,
                "error_ratio_to_transformers": figures.error_ratio,
                "perplexity": figures.perplexity,
                "perplexity_ratio": figures.perplexity_ratio,
                "generated_equal_share": figures.generated_equal / figures.generated_tokens,
                "conversion_mean_kl_nats": conversion["mean_kl_nats"],
            },
            summary=f"greedy agreement {logits.greedy_agreement:.2%}, KL {logits.mean_kl_nats:.1e}, error "
            f"{figures.error_ratio:.2f}x transformers', perplexity {figures.perplexity:.2f}",
        )


def _without_engine(out_dir: Path, gates: "Gates", conversion: dict[str, Any], reference: "Reference") -> StageOutput:
    """The report of a build without a CPU engine: the gates are for the targets that are verified where they run."""
    engine = {NOT_RUN: "this bundle has no engine for the CPU", "gates": vars(gates)}
    report = {"engine": engine, "conversion": conversion, "baseline": asdict(reference.baseline),
              "hardware": fingerprint()}  # fmt: skip
    (out_dir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    kl = conversion["mean_kl_nats"]
    return StageOutput(metrics={"conversion_mean_kl_nats": kl}, summary=f"no CPU engine; conversion KL {kl:.1e}")


def _make_reference(
    config: VerifyConfig,
    checkpoint: "Checkpoint",
    tokenizer: "Tokenizer",
    out_dir: Path,
    report: Callable[[float, str], None],
) -> "Reference":
    from pipelines.quality.reference import ReferenceSizes, make_reference
    from runtime.formats.reference import REFERENCE_FILE

    prompts = load_prompts(config.num_prompts)
    entries = [asdict(prompt) for prompt in prompts]
    (out_dir / "prompts.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    reference = make_reference(
        checkpoint,
        [encode_prompt(tokenizer, prompt, chat=prompt.kind == "chat") for prompt in prompts],
        tokenizer.encode(load_text())[: config.perplexity_tokens],
        checkpoint.config.dtype,
        ReferenceSizes(num_tokens=config.num_new_tokens, top_k=config.top_logits),
        report,
    )
    reference.save(out_dir / REFERENCE_FILE)
    return reference


def _conversion(
    fetched: Path, checkpoint: "Checkpoint", reference: "Reference", report: Callable[[float, str], None]
) -> dict[str, Any]:
    from pipelines.quality.conversion import conversion_report

    return asdict(conversion_report(fetched, checkpoint, reference, report))


def _part(context: StageContext, start: float, end: float) -> Callable[[float, str], None]:
    """A progress callback over one share of the stage's bar."""

    def report(fraction: float, text: str) -> None:
        context.progress.advance(start + (end - start) * fraction, text=text)
        context.log.info(text)

    return report


STAGE = VerifyStage()
