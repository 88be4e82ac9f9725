"""Draft: what drafts for the engine. A head, a smaller model, prompt lookup, or nothing; and whether it pays."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import DraftConfig
from pipelines.stage import CUBINS, Artifact, StageContext, StageOutput
from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_FILE

if TYPE_CHECKING:
    from plugins.linear import LinearKind
    from runtime.formats.checkpoint import Checkpoint
    from runtime.speculation.redrafter.head_file import HeadDescription
    from runtime.speculation.tree import TreeShape

HEADS_DIR = Path(__file__).parents[1] / "data" / "heads"
HEAD_FILES = ("head.json", "head.safetensors", "recipe.json", "curves.jsonl")
PROMPTS = tuple(HEADS_DIR.parent / name for name in ("draft_openings.json", "draft_prompts.json", "prompts.json"))


class DraftStage:
    name = "draft"
    libraries = ("torch", "safetensors", "tokenizers")
    hardware_bound = True  # whether a head pays is this machine's answer
    resources: tuple[Path, ...] = (*PROMPTS, *sorted(HEADS_DIR.glob("*/head.json")))

    def run(
        self, config: DraftConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write draft.json, which names the drafter, and the head's or the smaller model's files beside it.

        Raises:
            EnginewrightError: a ready head was asked for and none fits, there is nothing to train on, or the smaller
                model has another tokenizer.
        """
        from pipelines.draft.base import base_digest
        from pipelines.draft.recipe import read_curves
        from pipelines.draft.train import train_head
        from plugins.cuda.library import keep_compiled
        from runtime.formats.checkpoint import Checkpoint
        from runtime.speculation.redrafter.head_file import read_description

        if config.drafter in ("none", "ngram"):
            return _without_head(out_dir, config.drafter, "")
        if config.drafter == "model":
            return _smaller_model(config, inputs, out_dir)
        source = json.loads((inputs["fetch"].path / "source.json").read_text(encoding="utf-8"))
        digest = base_digest(source)
        checkpoint = Checkpoint(inputs["convert"].path)
        if config.drafter == "train":
            base = (source["uri"], digest)
            keep_compiled(context.kept_dir / CUBINS)  # the data are written with the engine's kernels
            description = train_head(config.train, checkpoint, base, out_dir, context.scratch_dir, context.progress)
        else:
            folder = ready_head(digest)
            if folder is None and config.drafter == "ready":
                raise EnginewrightError(
                    "draft=ready, but no shipped head was trained for this model; write draft=train"
                )
            if folder is None:
                return _without_head(out_dir, "none", "no ready head for this model")
            for name in HEAD_FILES:
                shutil.copy2(folder / name, out_dir / name)
            description = read_description(out_dir)
        curves = read_curves(out_dir / "curves.jsonl") if config.drafter == "train" else {}
        return replace(_gate(config, description, checkpoint, out_dir, context), curves=curves)


def _smaller_model(config: DraftConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> StageOutput:
    """Put the second checkpoint beside draft.json. No gate: the engine measures at load whether it pays."""
    from pipelines.draft.smaller import check_drafting_model
    from pipelines.links import link_tree
    from runtime.formats.checkpoint import Checkpoint

    target, smaller = Checkpoint(inputs["convert"].path), Checkpoint(inputs["draft_convert"].path)
    check_drafting_model(target, smaller, config.keep)
    link_tree(smaller.path, out_dir)
    _write(out_dir, "model")
    share = smaller.spec.num_parameters / target.spec.num_parameters
    return StageOutput(
        metrics={"has_head": 0.0, "draft_model_share": share},
        summary=f"{config.model.name}, {smaller.spec.num_parameters / 1e6:.1f} M parameters, {share:.0%} of the target",
    )


def ready_head(digest: str) -> Path | None:
    """The shipped head for the model of this digest."""
    from runtime.speculation.redrafter.head_file import read_description

    folders = sorted(path.parent for path in HEADS_DIR.glob("*/head.json"))
    return next((folder for folder in folders if read_description(folder).base_digest == digest), None)


def _gate(
    config: DraftConfig, description: "HeadDescription", checkpoint: "Checkpoint", out_dir: Path, context: StageContext
) -> StageOutput:
    """Measure what drafting costs here; a head that does not pay stays out unless the configuration insists."""
    import torch

    from pipelines.draft.cost import MAX_SEQ_LEN, measure_cost, measure_speedup
    from runtime.model.decoder import Decoder
    from runtime.speculation.redrafter import load_redrafter
    from runtime.speculation.redrafter.head_file import worthwhile

    context.progress.advance(0.9, text="measuring what drafting costs")
    dtype = getattr(torch, checkpoint.config.dtype)
    linear: LinearKind = config.linear  # type: ignore[assignment]
    decoder = Decoder(checkpoint, dtype, linear, MAX_SEQ_LEN)
    drafter = load_redrafter(out_dir, checkpoint, dtype, linear)
    metrics: dict[str, float] = {}
    speedups: dict[TreeShape, float] = {}
    for tree in worthwhile(description.trees):
        num_nodes = tree.num_nodes
        cost = measure_cost(checkpoint, decoder, drafter, tree)
        speedup = cost.speedup(tree.accepted_length["mean"])
        speedups[tree.shape] = speedup
        metrics |= {f"n{num_nodes}_accepted_length_{kind}": value for kind, value in tree.accepted_length.items()}
        metrics |= {f"n{num_nodes}_acceptance_depth_{i}": x for i, x in enumerate(tree.acceptance, 1)}
        metrics |= {f"n{num_nodes}_{name}": value for name, value in cost._asdict().items()}
        metrics[f"n{num_nodes}_predicted_speedup"] = speedup
    shape, best = max(speedups.items(), key=lambda pair: pair[1])
    if (measured := measure_speedup(checkpoint, decoder, drafter, shape)) is not None:
        metrics["measured_speedup"] = measured
        context.log.info("%d nodes: predicted %.2fx plain decoding, measured %.2fx", shape.num_nodes, best, measured)
    verdict = f"predicted {best:.2f}x at batch 1 on this machine"
    if best <= 1.0 and not config.keep:
        for name in (*HEAD_FILES, "curves.png"):
            (out_dir / name).unlink(missing_ok=True)
        return _without_head(out_dir, "none", f"the head does not pay: {verdict}; draft.keep=true keeps it", metrics)
    _write(out_dir, "redrafter", **({} if config.drafter == "train" else {"shipped": True}))
    length = max(tree.accepted_length["mean"] for tree in description.trees)
    metrics["has_head"] = 1.0
    return StageOutput(metrics=metrics, summary=f"redrafter, accepted length up to {length:.2f}, {verdict}")


def _without_head(out_dir: Path, drafter: str, reason: str, metrics: Mapping[str, float] | None = None) -> StageOutput:
    _write(out_dir, drafter)
    return StageOutput(
        metrics={**(metrics or {}), "has_head": 0.0}, summary=drafter + (f": {reason}" if reason else "")
    )


def _write(out_dir: Path, drafter: str, **more: bool) -> None:
    fields = {"schema": 1, "drafter": drafter, **more}
    (out_dir / DRAFT_FILE).write_text(json.dumps(fields) + "\n", encoding="utf-8")


STAGE = DraftStage()
