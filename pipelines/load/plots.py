"""Charts of a load: how latencies are distributed, and how first tokens came over time. Measures nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.benchmark.plots import INK, MUTED, dress_axes
from pipelines.load.options import LoadOptions
from pipelines.load.sample import Sample

LINES = {"closed": "#0f766e", "poisson": "#b45309", "burst": "#1d4ed8", "long": "#86198f"}


def write_plots(
    samples: Mapping[str, Sequence[Sample]], options: LoadOptions, subtitle: str, out_dir: Path
) -> list[Path]:
    """Write one PNG of distributions and one of times; `samples` are those of each scenario."""
    answered = {name: [sample for sample in each if sample.error is None] for name, each in samples.items()}
    figures = {
        "latencies.png": draw_latencies(answered, options, subtitle),
        "timeline.png": draw_timeline(answered, subtitle),
    }
    for name, figure in figures.items():
        figure.savefig(out_dir / name, dpi=140)
    return [out_dir / name for name in figures]


def draw_latencies(samples: Mapping[str, Sequence[Sample]], options: LoadOptions, subtitle: str) -> Figure:
    """Cumulative shares of requests by time to first token, and of gaps between tokens, with the objective."""
    figure = _figure("Latency", subtitle)
    left, right = figure.subplots(1, 2)
    for name, each in samples.items():
        _draw_shares(left, [sample.ttft_s * 1e3 for sample in each], name)
        _draw_shares(right, [gap * 1e3 for sample in each for gap in sample.gaps_s], name)
    for axes, label, bound in (
        (left, "time to first token, ms", options.slo_ttft_ms),
        (right, "between tokens, ms", options.slo_itl_ms),
    ):
        axes.axvline(bound, color=MUTED, linestyle="--", linewidth=1, label="objective")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(label, fontsize=9, color=INK)
        dress_axes(axes, "share, %")
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_timeline(samples: Mapping[str, Sequence[Sample]], subtitle: str) -> Figure:
    """Each request's time to first token over the moment it was due: queues show as slopes."""
    figure = _figure("First tokens over time", subtitle)
    for axes, (name, each) in zip(figure.subplots(1, len(samples), squeeze=False)[0], samples.items(), strict=True):
        times = [sample.ttft_s * 1e3 for sample in each]
        axes.scatter([sample.due_s for sample in each], times, s=14, color=LINES[name], zorder=3)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel("due at, s", fontsize=9, color=INK)
        dress_axes(axes, "time to first token, ms")
    return figure


def _draw_shares(axes: Axes, values: Sequence[float], name: str) -> None:
    ordered = sorted(values)
    shares = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
    axes.step(ordered, shares, where="post", color=LINES[name], label=name, zorder=3)


def _figure(title: str, subtitle: str) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"{title}\n{subtitle}", fontsize=11, color=INK, x=0.01, ha="left")
    return figure
