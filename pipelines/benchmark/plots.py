"""Charts of benchmarks: the engine beside transformers with the spread of the repeats, bursts and chunk sizes.

Draws what it is given: it measures nothing and decides nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runtime.benchmark.arrivals import BurstSample, ChunkRow
from runtime.benchmark.samples import SummaryRow

TITLES = {"decode": "Decode throughput", "prefill": "Prefill throughput", "mixed": "Requests of mixed lengths"}
SLOWER = "#b45309"
COLOURS = {"enginewright": "#0f766e", "transformers": "#b8bec7"}
INK, MUTED, FAINT = "#1f2933", "#52606d", "#e4e7eb"
BAR_WIDTH = 0.38


def write_plots(rows: list[SummaryRow], subtitle: str, out_dir: Path) -> list[Path]:
    """Write one PNG for every case that has throughput rows; `subtitle` names model, dtype and device."""
    paths = []
    for case, title in TITLES.items():
        chosen = [row for row in rows if row.case == case and row.unit == "tokens/s"]
        if chosen:
            paths.append(out_dir / f"{case}.png")
            draw_case(chosen, title, subtitle).savefig(paths[-1], dpi=140)
    return paths


def draw_case(rows: list[SummaryRow], title: str, subtitle: str) -> Figure:
    """Grouped bars of one case: a group per (batch size, prompt length), a bar per system."""
    groups = sorted({(row.prompt_len, row.batch_size) for row in rows})
    figure = Figure(figsize=(max(5.4, 2.0 + 1.5 * len(groups)), 4.6), layout="constrained")
    axes = figure.add_subplot()
    systems = [system for system in COLOURS if any(row.system == system for row in rows)]
    for offset, system in enumerate(systems):
        shift = (offset - (len(systems) - 1) / 2) * BAR_WIDTH
        bars = [row for row in rows if row.system == system]
        places = [groups.index((row.prompt_len, row.batch_size)) + shift for row in bars]
        _draw_bars(axes, bars, places, system)
    _dress(axes, [_group_label(*group) for group in groups])
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=36)
    notes = f"{subtitle}\nmedian of {rows[0].num_repeats} runs, whiskers min to max, × against transformers"  # noqa: RUF001
    text = axes.annotate(notes, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=8.5, color=MUTED)
    text.set_in_layout(False)  # a long subtitle must not squeeze the bars
    figure.legend(loc="outside lower center", ncols=len(systems), frameon=False, fontsize=9)
    return figure


def draw_burst(samples: Sequence[BurstSample], subtitle: str) -> Figure:
    """First-token times of a burst: a group per request in order of arrival, with prefix reuse and without."""
    figure, axes = _new_figure("Burst over one prefix: time to first token", subtitle)
    requests = sorted({sample.request for sample in samples})
    for shift, prefix_reuse, label, colour in (
        (-BAR_WIDTH / 2, True, "with prefix reuse", COLOURS["enginewright"]),
        (BAR_WIDTH / 2, False, "without", COLOURS["transformers"]),
    ):
        times = [[s.ttft_s * 1e3 for s in samples if (s.request, s.prefix_reuse) == (r, prefix_reuse)]
                 for r in requests]  # fmt: skip
        axes.bar([r + shift for r in requests], [median(each) for each in times], BAR_WIDTH, color=colour, label=label,
                 zorder=2)  # fmt: skip
    axes.set_xticks(requests, [f"request {request + 1}" for request in requests], fontsize=9)
    dress_axes(axes, "ms (lower is better)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_chunks(rows: Sequence[ChunkRow], subtitle: str) -> Figure:
    """Throughput, time to first token and p99 between tokens, over the tokens of the prompt in a mean step.

    One curve for fixed budgets and one for chunks by their time, with the ratio at each point.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"A {rows[0].prompt_len}-token prompt arrives while others decode\n{subtitle}",
                    fontsize=11, color=INK, x=0.01, ha="left")  # fmt: skip
    panels = (
        ("throughput, tokens/s (higher is better)", "tokens_per_s", "linear"),
        ("time to first token, ms (lower is better)", "ttft_ms", "log"),
        ("p99 between tokens, ms (lower is better)", "busy_p99_ms", "log"),
    )
    fixed = [row for row in rows if row.itl_ratio is None]
    paced = [row for row in rows if row.itl_ratio is not None]
    for axes, (label, field, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _draw_curve(axes, fixed, field, COLOURS["enginewright"], "fixed number of tokens")
        if paced:
            _draw_curve(axes, paced, field, SLOWER, "by itl_ratio")
            for row in paced:
                place = (row.step_tokens, getattr(row, field))
                axes.annotate(f"{row.itl_ratio:g}", place, (4, 5), textcoords="offset points", fontsize=8, color=INK)
        if field == "busy_p99_ms":
            _draw_curve(axes, fixed, "idle_p99_ms", COLOURS["transformers"], "without the prompt")
            if paced:
                _draw_curve(axes, paced, "idle_p99_ms", FAINT, "as many steps without it")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("tokens of the prompt in the mean step", fontsize=9, color=INK)
        axes.set_yscale(scale)
        dress_axes(axes, label, from_zero=scale == "linear")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_curve(axes: Axes, rows: Sequence[ChunkRow], field: str, colour: str, name: str) -> None:
    places = [row.step_tokens for row in rows]
    axes.plot(places, [getattr(row, field) for row in rows], marker="o", color=colour, label=name, zorder=3)


def _new_figure(title: str, subtitle: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{title}\n{subtitle}", loc="left", fontsize=11, color=INK)
    return figure, axes


def _draw_bars(axes: Axes, rows: list[SummaryRow], places: list[float], system: str) -> None:
    medians = [row.median for row in rows]
    spread = [[row.median - row.min for row in rows], [row.max - row.median for row in rows]]
    axes.bar(places, medians, BAR_WIDTH, color=COLOURS[system], label=system, zorder=2)
    axes.errorbar(places, medians, spread, fmt="none", ecolor=INK, elinewidth=1, capsize=3, zorder=3)
    for place, row in zip(places, rows, strict=True):
        label = f"{row.median:,.0f}" if row.median >= 100 else f"{row.median:.1f}"
        if system == "enginewright" and row.ratio is not None:
            colour = COLOURS[system] if row.ratio >= 1 else SLOWER
            _label(axes, f"{row.ratio:.2f}×", place, row.max, 15, fontsize=9.5, fontweight="bold", color=colour)  # noqa: RUF001
        _label(axes, label, place, row.max, 4, fontsize=8, color=INK)


def _label(axes: Axes, text: str, x: float, y: float, points_above: float, **style: Any) -> None:
    axes.annotate(text, (x, y), (0, points_above), textcoords="offset points", ha="center", **style)


def _dress(axes: Axes, labels: list[str]) -> None:
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    # A single group keeps room at its sides, or its bars would be as wide as walls.
    side = 0.6 if len(labels) > 1 else 1.0
    axes.set_xlim(-side, len(labels) - 1 + side)
    dress_axes(axes, "tokens/s (higher is better)")


def dress_axes(axes: Axes, label: str, from_zero: bool = True) -> None:
    axes.set_ylabel(label, fontsize=9, color=INK)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=FAINT, zorder=0)
    axes.margins(y=0.15)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _group_label(prompt_len: int, batch_size: int) -> str:
    requests = f"batch {batch_size}"
    return f"{requests}\n{prompt_len}-token prompt" if prompt_len else f"{batch_size} requests"
