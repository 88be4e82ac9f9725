"""What is written beside a trained head: how it was made, and the curves of its training."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.digest import json_digest
from pipelines.draft.plots import draw_training
from runtime.speculation.redrafter.head_file import HeadDescription, write_head

RECIPE_FILE, CURVES_FILE, PLOT_FILE = "recipe.json", "curves.jsonl", "curves.png"


def write_trained(
    folder: Path,
    description: HeadDescription,
    recipe: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    curves: Path,
) -> HeadDescription:
    """Write a head, its recipe with the step that it is from, and its curves, drawn too; returns what `head.json` says.

    Args:
        description: the digest of the recipe is filled in.
        curves: the lines so far; copied where they are not in `folder` already.
    """
    rows = read_rows(curves)
    best = max(rows, key=lambda row: (row["accepted_length"], -row["step"]))
    whole = {**recipe, "best_step": best["step"]}
    described = replace(description, recipe_digest=json_digest(whole))
    write_head(folder, described, tensors)
    (folder / RECIPE_FILE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if curves != folder / CURVES_FILE:
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / CURVES_FILE).write_text("".join(lines), encoding="utf-8")
    draw_training(rows, best["step"]).savefig(folder / PLOT_FILE, dpi=100)
    return described


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A training's reports in order; a step that was reported by a killed build and again by the next counts once."""
    rows = {row["step"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    return [rows[step] for step in sorted(rows)]


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a training as (step, value): loss, top-1 share by future token, held-out accepted length."""
    curves: dict[str, list[tuple[int, float]]] = {"train_loss": [], "held_out_accepted_length": []}
    for row in read_rows(path):
        step = row["step"]
        curves["train_loss"].append((step, row["loss"]))
        curves["held_out_accepted_length"].append((step, row["accepted_length"]))
        for position, share in enumerate(row["top1"], 1):
            curves.setdefault(f"train_top1_{position}", []).append((step, share))
    return curves
