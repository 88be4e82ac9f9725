"""Draws a stack of switches: a waterfall of the session's time, and beside it what requests felt at each stage."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from pipelines.benchmark.plots import COLOURS, FAINT, INK, MUTED, SLOWER
from runtime.benchmark.stack import StackRow

_FELT = (
    ("time to first token, ms", "ttft_ms"),
    ("p99 wait for the next tokens, ms", "pause_ms"),
    ("alone: time to first token, ms", "alone_ttft_ms"),
    ("alone: tokens/s", "alone_tokens_per_s"),
)


def draw_stack(rows: Sequence[StackRow], subtitle: str) -> Figure:
    """On logarithmic axes, so that equal heights are equal ratios and the gains multiply up to the whole."""
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    whole = rows[0].total_s / rows[-1].total_s
    title = f"Where the speed comes from, one switch at a time: {whole:.1f}x {rows[0].stage}"
    figure.suptitle(f"{title}\n{subtitle}", fontsize=12, color=INK, x=0.01, ha="left")
    grid = figure.add_gridspec(2, 3, width_ratios=(2.4, 1.0, 1.0))
    _draw_waterfall(figure.add_subplot(grid[:, 0]), rows)
    for index, (title, field) in enumerate(_FELT):
        axes = figure.add_subplot(grid[index // 2, 1 + index % 2])
        _draw_felt(axes, title, [getattr(row, field) for row in rows], [row.stage for row in rows])
    return figure


def _draw_waterfall(axes: Axes, rows: Sequence[StackRow]) -> None:
    """A bar from where the stage before was to where this one is; the first from the axis."""
    floor = min(row.total_s for row in rows) * 0.5
    before = floor
    for place, row in enumerate(rows):
        low, high = sorted((before, row.total_s))
        is_naive = place == 0
        colour = COLOURS["transformers"] if is_naive else COLOURS["enginewright"] if row.gain >= 1 else SLOWER
        axes.bar(place, max(high - low, low * 0.01), 0.62, low, color=colour, zorder=2)
        if place + 1 < len(rows):
            axes.plot([place - 0.31, place + 1.31], [row.total_s] * 2, color=MUTED, linewidth=0.8, zorder=1)
        text = f"{row.total_s:.3g} s" if is_naive else f"{row.gain:.2f}x\n{row.total_s:.3g} s"
        axes.annotate(text, (place, high), (0, 4), textcoords="offset points", ha="center", fontsize=8.5, color=INK)
        before = row.total_s
    axes.set_yscale("log")
    axes.set_ylim(floor, max(row.total_s for row in rows) * 1.6)
    _dress(axes, [row.stage for row in rows], "seconds until the session's last token (lower is better)")


def _draw_felt(axes: Axes, title: str, values: list[float], stages: list[str]) -> None:
    axes.plot(range(len(values)), values, marker="o", color=COLOURS["enginewright"], zorder=3)
    axes.plot([0], values[:1], marker="o", color=COLOURS["transformers"], zorder=4)
    for place in (0, len(values) - 1):
        text = f"{values[place]:,.0f}" if values[place] >= 100 else f"{values[place]:.3g}"
        axes.annotate(
            text, (place, values[place]), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK
        )
    axes.set_yscale("log")
    axes.margins(y=0.2)
    axes.margins(x=0.12)
    _dress(axes, stages, "")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.set_xticks(range(len(stages)), stages, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_title(title, fontsize=9, color=INK, loc="left")


def _dress(axes: Axes, stages: Sequence[str], label: str) -> None:
    axes.set_xticks(range(len(stages)), [stage.replace(" ", "\n") for stage in stages])
    axes.set_ylabel(label, fontsize=9, color=INK)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.tick_params(colors=INK, labelsize=8, length=0, which="both")
    axes.grid(axis="y", color=FAINT, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
