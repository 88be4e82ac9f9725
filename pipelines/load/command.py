"""`enginewright load`: every scenario against one endpoint, its raw samples, figures and plots."""

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipelines.load.arrivals import run_arrivals
from pipelines.load.client import Client
from pipelines.load.endpoint import base_url, find_model, open_session
from pipelines.load.figures import Row, errors_of, summarise
from pipelines.load.options import LoadOptions
from pipelines.load.plots import write_plots
from pipelines.load.prompts import make_prompts
from pipelines.load.record import recorded
from pipelines.load.sample import Sample
from pipelines.loading import load_config
from pipelines.redaction import redacted, redacted_text
from pipelines.storage import storage_errors
from pipelines.summary import shown
from runtime.errors import EnginewrightError

SAMPLES_FILE, SUMMARY_FILE = "samples.jsonl", "summary.json"
COLUMNS = {
    "sent": "num_requests", "failed": "num_failed", "TTFT\np50": "ttft_p50_ms", "TTFT\np99": "ttft_p99_ms",
    "ITL\np50": "itl_p50_ms", "ITL\np99": "itl_p99_ms", "tokens\nper s": "output_tokens_per_s", "good": "good_share",
    "good\nper s": "goodput_per_s",
}  # fmt: skip


def load(options: LoadOptions, console: Console) -> None:
    """Run, record and print one load.

    Raises:
        EnginewrightError: the endpoint cannot be used, or answered nothing; the store cannot be used.
    """
    config = load_config([], os.environ)
    settings = redacted(asdict(replace(options, out="")))  # a folder of this machine is no part of the figures
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    out_dir = Path(options.out) if options.out else Path(config.paths.root, "load", now)
    tracked = None if options.no_tracking else config
    with storage_errors(out_dir, "load"), recorded("load", settings, tracked) as log:
        model, samples = asyncio.run(measure(options, out_dir))
        rows = [row for each in samples.values() if (row := summarise(each, options))]
        errors = {name: found for name, each in samples.items() if (found := errors_of(each))}
        if not rows:
            first = next(iter(next(iter(errors.values()))))
            raise EnginewrightError(f"no request was answered, most for this reason: {redacted_text(first)}")
        summary = {"url": redacted_text(options.url), "model": model, "options": settings,
                   "rows": [asdict(row) for row in rows], "errors": errors}  # fmt: skip
        files = [out_dir / SUMMARY_FILE, out_dir / SAMPLES_FILE]
        files[0].write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        files += write_plots(samples, options, f"{model} at {redacted_text(options.url)}", out_dir)
        log({f"{row.scenario}/{name}": value for row in rows for name, value in figures_of(row).items()}, files)
    console.print(table_of(rows))
    for name, found in errors.items():
        for error, count in found.items():
            console.print(f"{name}: {count} failed: {redacted_text(error)}", highlight=False, markup=False)
    console.print(f"Results {shown(out_dir)}", highlight=False, soft_wrap=True)


async def measure(options: LoadOptions, out_dir: Path) -> tuple[str, dict[str, list[Sample]]]:
    """Run the scenarios one after another; every sample is on disk as soon as its request ends."""
    async with open_session(options) as session:
        model = await find_model(session, options)
        client = Client(session, base_url(options.url), model, options)
        for prompt in make_prompts("warmup", options)[: options.warmups]:
            await client.answer(prompt, time.perf_counter(), Sample("warmup", 0, 0.0))
        out_dir.mkdir(parents=True, exist_ok=True)
        with (out_dir / SAMPLES_FILE).open("w", buffering=1, encoding="utf-8") as file:
            return model, {name: await run_scenario(name, options, client, file) for name in options.scenarios}


async def run_scenario(name: str, options: LoadOptions, client: Client, file: TextIO) -> list[Sample]:
    print(f"{name}: {options.requests} requests", file=sys.stderr, flush=True)
    prompts = make_prompts(name, options)
    samples: list[Sample] = []
    begun = time.perf_counter()

    async def send(index: int, due: float) -> None:
        sample = Sample(name, index, due - begun)
        await client.answer(prompts[index], due, sample)
        samples.append(sample)
        file.write(json.dumps(asdict(sample)) + "\n")

    await run_arrivals(name, options, send)
    return samples


def figures_of(row: Row) -> dict[str, float]:
    return {field.name: getattr(row, field.name) for field in fields(row) if field.name != "scenario"}


def table_of(rows: list[Row]) -> Table:
    """One row a scenario; times in ms."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column()
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.scenario, *(formatted(name, getattr(row, name)) for name in COLUMNS.values()))
    return table


def formatted(name: str, value: float) -> str:
    if name == "good_share":
        return f"{value:.0%}"
    return f"{value:,.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"
