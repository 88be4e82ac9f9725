"""Draws the training of a draft head: what it was taught, and what it is worth on texts it never saw."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.benchmark.plots import COLOURS, FAINT, INK, MUTED


def draw_training(rows: Sequence[Mapping[str, Any]], best_step: int) -> Figure:
    """`rows` are those of curves.jsonl, in order."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, top1, accepted = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    colour = COLOURS["enginewright"]
    loss.plot(steps, [row["loss"] for row in rows], marker="o", markersize=3, color=colour)
    _dress(loss, "training loss, nats per drafted token")
    depth = len(rows[0]["top1"])
    for ahead in range(depth):
        shares = [row["top1"][ahead] for row in rows]
        top1.plot(steps, shares, marker="o", markersize=3, color=colour, alpha=1 - 0.8 * ahead / depth)
        top1.annotate(str(ahead + 1), (steps[-1], shares[-1]), (4, -3), textcoords="offset points", fontsize=8)
    _dress(top1, "first choices that are the target's, by token ahead")
    lengths = [row["accepted_length"] for row in rows]
    accepted.plot(steps, lengths, marker="o", markersize=3, color=colour)
    accepted.axvline(best_step, color=MUTED, linewidth=0.8, linestyle="--")
    _dress(accepted, f"held-out accepted length; kept: {max(lengths):.2f} at step {best_step:,}")
    return figure


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("step", fontsize=9, color=INK)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.grid(color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
