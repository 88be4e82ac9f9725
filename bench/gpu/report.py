"""Tables and plots of measured rows: `python -m bench.gpu.report DIR` writes DIR/summary.md and PNGs beside it."""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from bench.gpu.sections import sections, stacks
from pipelines.benchmark.stack_plot import draw_stack

OURS = "enginewright"
_SHORTEST_S = 1.0  # of an energy reading: the counter's steps are 0.1 s apart
_CASES = ("batch_size", "prompt_len", "rows", "shape")
_RAW = ("read_bandwidth", "streamed_bytes", "kv_bytes", "attention_bytes", "attention_flop", "error_ratio")

Lines = list[dict[str, Any]]


def read_rows(folder: Path) -> dict[str, Lines]:
    """Lines of every row that was measured to its end, by the row's name."""
    rows = {}
    for path in sorted(folder.glob("*.jsonl")):
        *texts, last = path.read_text(encoding="utf-8").splitlines() or [""]
        if last == json.dumps({"kind": "end"}):
            rows[path.stem] = [json.loads(text) for text in texts]
    return rows


def joined(rows: dict[str, Lines]) -> dict[str, Lines]:
    """With compiled baselines, which have processes of their own, beside what else was measured of their model."""
    found = {name: list(lines) for name, lines in rows.items() if not name.startswith("compiled-")}
    for name, lines in rows.items():
        model = name.removeprefix("compiled-")
        if name != model and f"decode-{model}" in found:
            found[f"decode-{model}"] += [line for line in lines if line.get("metric") == "decode"]
    return found


def medians(lines: Lines) -> dict[tuple[str, str, str], dict[str, float]]:
    """(metric, case, unit) -> system -> median over the repeats."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if "metric" in line and "unit" in line and line.get("seconds", _SHORTEST_S) >= _SHORTEST_S:
            case = next((f"{name.removesuffix('_size')} {line[name]}" for name in _CASES if name in line), "")
            values[line["metric"], case, line["unit"]][line.get("system", OURS)].append(line["value"])
    return {key: {name: median(each) for name, each in systems.items()} for key, systems in values.items()}


def table(rows: dict[str, Lines]) -> str:
    """Markdown: ours, the best baseline of the run, the ratio (above 1 is better), the share of the read roofline."""
    columns = ("row", "case", "ours", "unit", "best baseline", "ratio", "of the read roofline")
    out = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, lines in rows.items():
        figures = medians(lines)
        bandwidth, streamed = (
            next((each[OURS] for (metric, _, _), each in figures.items() if metric == wanted), 0.0)
            for wanted in ("read_bandwidth", "streamed_bytes")
        )
        for (metric, case, unit), systems in figures.items():
            if OURS not in systems or metric in _RAW:
                continue
            ours, others = systems[OURS], {system: value for system, value in systems.items() if system != OURS}
            higher = unit == "tokens/s"
            best = (max if higher else min)(others, key=lambda system: others[system], default=None)
            ratio = "" if best is None else f"{ours / others[best] if higher else others[best] / ours:.2f}"
            share = ""
            if metric == "decode" and case == "batch 1" and bandwidth:
                share = f"{ours * streamed / bandwidth:.0%}"
            shown = "" if best is None else f"{best} {others[best]:,.4g}"
            out.append(f"| {name} | {metric} {case} | {ours:,.4g} | {unit} | {shown} | {ratio} | {share} |")
    return "\n".join(out) + "\n"


def plot(rows: dict[str, Lines], path: Path) -> None:
    """Decode rates of every model and batch size, ours beside the baselines, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = {
        f"{name.removeprefix('decode-')}\n{case}": systems
        for name, lines in rows.items()
        for (metric, case, _), systems in medians(lines).items()
        if metric == "decode" and name.startswith("decode-")
    }
    systems = list(dict.fromkeys(system for each in cases.values() for system in each))
    figure, axes = plt.subplots(figsize=(1.1 * len(cases) + 2, 4.5), layout="constrained")
    width = 0.8 / len(systems)
    for index, system in enumerate(systems):
        at = [place + index * width for place, each in enumerate(cases.values()) if system in each]
        axes.bar(at, [each[system] for each in cases.values() if system in each], width, label=system)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(cases))], list(cases), fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("tokens/s (all requests together)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.report", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows = joined(read_rows(folder))
    device = next(iter(rows.values()))[0]
    head = (
        f"{device['name']}, driver {device['driver']}, torch {device['torch']}; sources {device['source_digest'][:12]}."
        " Medians of the raw lines beside this file; written by `python -m bench.gpu.report`.\n\n"
    )
    text = head + table(rows) + sections(rows)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    plot(rows, folder / "decode.png")
    for name, stages in stacks(rows).items():
        subtitle = f"{name.removeprefix('stack-')}, bfloat16 on {device['name']}"
        draw_stack(stages, subtitle).savefig(folder / f"{name}.png", dpi=140)


if __name__ == "__main__":
    main()
