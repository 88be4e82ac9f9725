"""Draws the rates of decoding: a panel for each model, bars for each batch size, and what the device allows."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.gpu.lines import COMPILED, EAGER, EAGER_AS_IS, NAIVE, OURS
from pipelines.benchmark.plots import FAINT, INK, MUTED

COLOURS = {OURS: "#0f766e", NAIVE: "#e0a458", COMPILED: "#8da2c0", EAGER: "#b8bec7", EAGER_AS_IS: "#dfe3e8"}


class DecodeCase(NamedTuple):
    """tokens/s of each system; limit: what the roofline allows, where it is known."""

    model: str
    case: str
    rates: dict[str, float]
    limit: float | None


def draw_decode(cases: Sequence[DecodeCase], subtitle: str) -> Figure:
    """On logarithmic axes; over each of our bars its rate, and its ratio to the naive graph."""
    panels = [list(each) for _, each in groupby(cases, key=lambda case: case.model)]
    systems = [system for system in COLOURS if any(system in case.rates for case in cases)]
    figure = Figure(figsize=(2.0 + 1.15 * len(cases), 5.2), layout="constrained")
    figure.suptitle(
        f"Decode, tokens/s of all requests together; under each rate its ratio to the naive graph\n{subtitle}",
        fontsize=11, color=INK, x=0.01, ha="left",
    )  # fmt: skip
    grid = figure.add_gridspec(1, len(panels), width_ratios=[len(panel) + 0.4 for panel in panels])
    for index, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(grid[0, index]), panel, systems)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _draw_panel(axes: Axes, cases: Sequence[DecodeCase], systems: Sequence[str]) -> None:
    width = 0.86 / len(systems)
    for index, system in enumerate(systems):
        places = [place + (index - (len(systems) - 1) / 2) * width for place in range(len(cases))]
        rates = [case.rates.get(system, float("nan")) for case in cases]
        axes.bar(places, rates, width, label=system, color=COLOURS[system], zorder=2)
    for place, case in enumerate(cases):
        ours = case.rates[OURS]
        text = f"{ours:,.0f}" + (f"\n{ours / case.rates[NAIVE]:.2f}x" if NAIVE in case.rates else "")
        at = (place - 0.43, max(ours, case.limit or 0.0))
        axes.annotate(text, at, (0, 4), textcoords="offset points", fontsize=8, color=INK)
    limits = [(place, case.limit) for place, case in enumerate(cases) if case.limit is not None]
    for index, (place, limit) in enumerate(limits):
        label = "roofline" if index == 0 else None
        axes.plot([place - 0.45, place + 0.45], [limit] * 2, color=MUTED, linewidth=1.2, label=label, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(5, 1_500_000)
    axes.set_xticks(range(len(cases)), [case.case for case in cases])
    axes.set_title(cases[0].model, fontsize=10, color=INK, loc="left")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    axes.tick_params(colors=INK, labelsize=8, length=0, which="both")
    axes.grid(axis="y", color=FAINT, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
