"""What the summary says besides its first table: ratios over each baseline, attention, losslessness, speculation."""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from runtime.benchmark.stack import StackRow, StackSample, summarise_stack

Lines = list[dict[str, Any]]
OURS = "enginewright"
_SHARED = (("one request", "reuse", "cold", "warm"), ("eight at once, prefix computed", "burst", "none", "warm"),
           ("eight at once", "burst", "none", "reuse"))  # fmt: skip
_BASELINES = ("transformers eager", "transformers compiled", "naive graph")


def sections(rows: dict[str, Lines]) -> str:
    """Markdown, a part for whatever was measured."""
    parts = (_over_baselines(rows), _verify(rows), _reuse(rows), _attention(rows), _error(rows), _invariance(rows),
             _speculation(rows), _stack(rows), _profiles(rows))  # fmt: skip
    return "".join("\n" + part for part in parts if part)


def stacks(rows: dict[str, Lines]) -> dict[str, list[StackRow]]:
    """Of every measured stack, its stages."""
    found = {}
    for name, lines in rows.items():
        fields = [{k: v for k, v in line.items() if k != "metric"} for line in lines if line.get("metric") == "stack"]
        if fields:
            found[name] = summarise_stack(StackSample(**each) for each in fields)
    return found


def _over_baselines(rows: dict[str, Lines]) -> str:
    """How many times each baseline's speed ours is."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, lines in rows.items():
        _, _, model = name.partition("-")
        for line in lines:
            case = {"decode": "batch_size", "prefill": "prompt_len"}.get(line.get("metric", ""))
            if case is not None and not name.startswith("long"):
                key = (model, f"{line['metric']}, {case.partition('_')[0]} {line[case]}")
                values.setdefault(key, {}).setdefault(line["system"], []).append(line["value"])
    cells = []
    for (model, case), systems in values.items():
        if OURS in systems:
            ours = median(systems[OURS])
            ratios = [median(systems[each]) / ours if each in systems else None for each in _BASELINES]
            if case.startswith("decode"):
                ratios = [None if ratio is None else 1 / ratio for ratio in ratios]
            cells.append([model, case, *("" if ratio is None else f"{ratio:.1f}x" for ratio in ratios)])
    return _table("Over each baseline", ["model", "case", *_BASELINES], cells)


def _verify(rows: dict[str, Lines]) -> str:
    """What a pass over more rows takes beside our own over a single row."""
    cells, columns = [], ["model", "through"]
    for name, lines in rows.items():
        values: dict[str, dict[int, list[float]]] = {}
        for line in (line for line in lines if line.get("metric") == "verify"):
            values.setdefault(line["system"], {}).setdefault(line["rows"], []).append(line["value"])
        if 1 in values.get(OURS, {}):
            columns = ["model", "through", *(f"{count} row{'s' if count > 1 else ''}" for count in values[OURS])]
            one = median(values[OURS][1])
            for system, counts in values.items():
                told = [f"{median(each):,.0f} us, {median(each) / one:.2f}x" for each in counts.values()]
                cells.append([name.removeprefix("verify-"), system, *told])
    return _table("A pass over a draft tree", columns, cells)


def _reuse(rows: dict[str, Lines]) -> str:
    """First tokens after a prefix that was computed before, and of a burst's later requests."""
    cells = []
    for name, lines in rows.items():
        for case, metric, slow, fast in _SHARED:
            ms = [
                [line["value"] for line in lines if line.get("metric") == metric and line["system"] == system
                 and line.get("request", 1) > 0] for system in (slow, fast)
            ]  # fmt: skip
            if all(ms):
                computed, reused = map(median, ms)
                cells.append([name.removeprefix("reuse-"), case, f"{computed:.1f}", f"{reused:.2f}",
                              f"{computed / reused:.1f}x"])  # fmt: skip
    columns = ["model", "case", "computed, ms", "reused, ms", "ratio"]
    return _table("Time to first token over a shared prefix of 8,192 tokens", columns, cells)


def _attention(rows: dict[str, Lines]) -> str:
    cells = []
    for lines in rows.values():
        reads = [line["value"] for line in lines if line.get("metric") == "read_bandwidth"]
        for shape in dict.fromkeys(line["shape"] for line in lines if line.get("metric") == "attention"):
            all_us: dict[str, list[float]] = {}
            for line in (line for line in lines if line.get("shape") == shape and line["metric"] == "attention"):
                all_us.setdefault(line["system"], []).append(line["value"])
            ours = median(all_us.pop(OURS))
            size, flop = (
                next(line["value"] for line in lines if line.get("shape") == shape and line["metric"] == metric)
                for metric in ("attention_bytes", "attention_flop")
            )
            others = "; ".join(f"{system} {median(us):.1f}, {median(us) / ours:.2f}x" for system, us in all_us.items())
            rate = size / ours * 1e6
            share = f"{rate / median(reads):.0%}" if reads and not shape.startswith("prefill") else ""
            cells.append([shape, f"{ours:.1f}", others, f"{rate / 1e12:.2f}", share, f"{flop / ours / 1e6:.0f}"])
    columns = ["shape", "ours, us", "others, us", "TB/s", "of the read roofline", "TFLOP/s"]
    return _table("Attention of one layer, 32 query and 8 K/V heads, head_dim 128", columns, cells)


def _error(rows: dict[str, Lines]) -> str:
    cells = [
        [line["system"], "real" if line["real"] else "random", str(line["num_positions"]),
         f"{line['mean_logit_diff']:.4f}", f"{line['max_logit_diff']:.3f}", f"{line['mean_kl_nats']:.2e}",
         str(line["near_tie_flips"]), str(line["hard_flips"])]
        for line in _of(rows, "error")
    ]  # fmt: skip
    columns = ["system", "weights", "positions", "mean logit difference", "largest", "mean KL, nats", "near-tie flips",
               "hard flips"]  # fmt: skip
    return _table("bf16 against fp32 on the same weights", columns, cells)


def _invariance(rows: dict[str, Lines]) -> str:
    lines = list(_of(rows, "invariance"))
    counts = sorted({line["rows"] for line in lines})
    cells = []
    for kernel in dict.fromkeys(line["kernel"] for line in lines):
        found = {line["rows"]: line for line in lines if line["kernel"] == kernel}
        cells.append([kernel, *(_bits(found[count]) if count in found else "" for count in counts)])
    columns = ["kernel", *(f"{count} row{'s' if count > 1 else ''}" for count in counts)]
    return _table("Bits of the same rows beside the most rows", columns, cells)


def _bits(line: dict[str, Any]) -> str:
    return "equal" if line["equal"] else f"differ by {line['max_difference']:.2g}"


def _speculation(rows: dict[str, Lines]) -> str:
    cells = [
        [line["sampling"], line["drafting"], f"{line['tokens_per_s']:,.0f}", f"{line['ratio']:.2f}x",
         f"{line['accepted_length']:.2f}", f"{line['ratio'] / line['accepted_length']:.2f}",
         f"{line['equal_share']:.3f}"]
        for lines in rows.values() for line in lines if line.get("kind") == "summary" and line["text"] == "all"
    ]  # fmt: skip
    columns = ["sampling", "drafting", "tokens/s", "over plain", "accepted length", "over that", "equal tokens"]
    return _table("Speculation, one request at a time", columns, cells)


def _stack(rows: dict[str, Lines]) -> str:
    cells = [
        [row.stage, f"{row.total_s:.3f}", f"{row.gain:.2f}x", f"{stages[0].total_s / row.total_s:.1f}x",
         f"{row.ttft_ms:.1f}", f"{row.pause_ms:.1f}", f"{row.alone_ttft_ms:.1f}", f"{row.alone_tokens_per_s:,.0f}"]
        for stages in stacks(rows).values() for row in stages
    ]  # fmt: skip
    columns = ["stage", "session, s", "over the last", "over the first", "TTFT, ms", "p99 wait, ms", "alone: TTFT, ms",
               "alone: tokens/s"]  # fmt: skip
    return _table("One switch at a time", columns, cells)


def _profiles(rows: dict[str, Lines]) -> str:
    found = {name: [line["text"] for line in lines if line.get("metric") == "profile"] for name, lines in rows.items()}
    parts = ["### {}\n\n```\n{}\n```\n".format(name, "\n\n".join(texts)) for name, texts in found.items() if texts]
    return "## Profiles\n\n" + "\n".join(parts) if parts else ""


def _of(rows: dict[str, Lines], metric: str) -> Iterator[dict[str, Any]]:
    return (line for lines in rows.values() for line in lines if line.get("metric") == metric)


def _table(title: str, columns: list[str], cells: Iterable[list[str]]) -> str:
    cells = list(cells)
    if not cells:
        return ""
    lines = [columns, ["---"] * len(columns), *cells]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
