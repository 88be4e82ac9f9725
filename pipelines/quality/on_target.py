"""Verify another engine than the CPU's, against the reference of the same weights; where it cannot run, say so."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.config import VerifyConfig
from pipelines.hardware import fingerprint
from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.stages.verify import REPORT_FILE
from runtime.formats.attestations import NOT_RUN


class VerifyOnTarget:
    """The stage `verify_<target>`; its engine is that of the stage `compile_<target>`."""

    hardware_bound = True
    resources: tuple[Path, ...] = ()

    def __init__(self, target: str, libraries: tuple[str, ...] = ()) -> None:
        self.target = target
        self.name = f"verify_{target}"
        self.libraries = ("torch", "tokenizers", *libraries)

    def run(
        self, config: VerifyConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write report.json.

        Raises:
            EnginewrightError: a gate failed; the report is written all the same.
        """
        from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
        from runtime.formats.reference import REFERENCE_FILE, Reference
        from runtime.loading import load_engine
        from runtime.targets import why_not_run
        from runtime.text.tokenizer import Tokenizer
        from runtime.verification import Gates, figures_json, require_gates, verify_engine

        if reason := why_not_run(self.target):
            text = f"{reason}; on a machine that has one: python -m runtime verify BUNDLE --target {self.target}"
            (out_dir / REPORT_FILE).write_text(json.dumps({NOT_RUN: text}, indent=2) + "\n", encoding="utf-8")
            return StageOutput(summary=f"NOT RUN: {reason}")
        checkpoint = Checkpoint(inputs["convert"].path)
        engine_dir = inputs[f"compile_{self.target}"].path
        engine = load_engine(checkpoint, engine_dir, Tokenizer(checkpoint.path / TOKENIZER_DIR))
        reference = Reference.load(inputs["verify"].path / REFERENCE_FILE)
        figures = verify_engine(engine, reference, lambda share, text: context.progress.advance(share, text=text))
        gates = Gates(**vars(config.gates))
        report = {"engine": figures_json(figures, gates), "hardware": fingerprint()}
        (out_dir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        require_gates(figures, gates)
        return StageOutput(
            metrics={
                "greedy_agreement_share": figures.logits.greedy_agreement,
                "mean_kl_nats": figures.logits.mean_kl_nats,
                "error_ratio_to_transformers": figures.error_ratio,
                "perplexity_ratio": figures.perplexity_ratio,
            },
            summary=f"greedy agreement {figures.logits.greedy_agreement:.2%}, KL {figures.logits.mean_kl_nats:.1e}, "
            f"error {figures.error_ratio:.2f}x transformers'",
        )
