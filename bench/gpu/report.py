"""Tables and plots of measured rows: `python -m bench.gpu.report DIR` writes DIR/summary.md and PNGs beside it."""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from bench.gpu import roofline
from bench.gpu.plots import DecodeCase, draw_decode
from bench.gpu.sections import sections, stacks
from bench.gpu.shapes import SHAPES
from pipelines.benchmark.stack_plot import draw_stack

OURS = "enginewright"
_SHORTEST_S = 1.0  # of an energy reading: the counter's steps are 0.1 s apart
_CASES = ("batch_size", "prompt_len", "rows", "shape")
_RAW = ("read_bandwidth", "product_rate", "streamed_bytes", "kv_bytes", "attention_bytes", "attention_flop",
        "error_ratio")  # fmt: skip

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
    """Markdown: ours, the best baseline of the run, the ratio (above 1 is better), the share of the roofline."""
    columns = ("row", "case", "ours", "unit", "best baseline", "ratio", "of the roofline")
    out = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, lines in rows.items():
        most = roofline.ceilings({name: lines})  # of the same process, else of the device's other rows
        if most.bytes_per_s is None:
            most = roofline.ceilings(rows)
        for (metric, case, unit), systems in medians(lines).items():
            if OURS not in systems or metric in _RAW:
                continue
            ours, others = systems[OURS], {system: value for system, value in systems.items() if system != OURS}
            higher = unit == "tokens/s"
            best = (max if higher else min)(others, key=lambda system: others[system], default=None)
            ratio = "" if best is None else f"{ours / others[best] if higher else others[best] / ours:.2f}"
            share = roofline.share(name, metric, case, unit, ours, most)
            shown = "" if best is None else f"{best} {others[best]:,.4g}"
            told = "" if share is None else f"{share:.0%}"
            out.append(f"| {name} | {metric} {case} | {ours:,.4g} | {unit} | {shown} | {ratio} | {told} |")
    return "\n".join(out) + "\n"


def decode_cases(rows: dict[str, Lines]) -> list[DecodeCase]:
    """Rates of every model and batch size, smaller models first."""
    found = []
    for name, lines in sorted(rows.items(), key=lambda row: _size(row[0])):
        most = roofline.ceilings({name: lines})
        for (metric, case, unit), systems in medians(lines).items():
            if metric == "decode" and name.startswith("decode-") and OURS in systems:
                share = roofline.share(name, metric, case, unit, systems[OURS], most)
                limit = None if share is None else systems[OURS] / share
                found.append(DecodeCase(name.removeprefix("decode-"), case, systems, limit))
    return found


def _size(row: str) -> int:
    return next((spec.num_parameters for name, spec in SHAPES.items() if row.endswith(name)), 0)


def head(rows: dict[str, Lines]) -> str:
    """What the figures are of; rows of other sources than most are named."""
    devices = {name: lines[0] for name, lines in rows.items()}
    digests = Counter(device["source_digest"] for device in devices.values())
    ((digest, _),) = digests.most_common(1)
    device = next(each for each in devices.values() if each["source_digest"] == digest)
    others = {name: each["source_digest"][:12] for name, each in devices.items() if each["source_digest"] != digest}
    earlier = f" Of other sources: {', '.join(f'{row} ({said})' for row, said in others.items())}." if others else ""
    return (
        f"{device['name']}, driver {device['driver']}, torch {device['torch']}; sources {digest[:12]}.{earlier} Medians"
        " of the raw lines beside this file; written by `python -m bench.gpu.report`.\n\n"
        "The roofline is the least time in which this GPU, by rates measured on it, reads the weights and cached keys"
        " of a case and multiplies what it must; the ratio is to the best baseline, above 1 where we are better.\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.report", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows = joined(read_rows(folder))
    text = head(rows) + table(rows) + sections(rows)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    device = next(iter(rows.values()))[0]["name"]
    draw_decode(decode_cases(rows), f"bfloat16 on {device}").savefig(folder / "decode.png", dpi=140)
    for name, stages in stacks(rows).items():
        subtitle = f"{name.removeprefix('stack-')}, bfloat16 on {device}"
        draw_stack(stages, subtitle).savefig(folder / f"{name}.png", dpi=140)


if __name__ == "__main__":
    main()
