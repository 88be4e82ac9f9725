"""Measure rows on this machine's NVIDIA GPU, one process for each: `python -m bench.gpu --out DIR [ROW ...]`.

A row that is complete for the same sources is not measured again; its raw lines are in DIR/<row>.jsonl, which is there
once the row has ended.
"""

import argparse
import os
import sys
import time
from itertools import chain
from pathlib import Path

import torch


def main() -> None:
    options = parser().parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no NVIDIA GPU, or a torch without CUDA; run it where python -m runtime doctor names one")
    if options.out is None:
        options.out = Path("bench/results", torch.cuda.get_device_name().lower().replace(" ", "-"))
    if options.row:
        measure(options.row, options)
        return
    from bench.gpu.rows import ROWS

    unknown = sorted({*options.rows, *options.skip} - set(ROWS))
    if unknown:
        sys.exit(f"error: no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    wanted = [row for row in options.rows or ROWS if row not in options.skip]
    if options.bundle is None and (without := [row for row in wanted if ROWS[row].needs_bundle]):
        print(f"not measured without --bundle: {', '.join(without)}", flush=True)
        wanted = [row for row in wanted if row not in without]
    options.out.mkdir(parents=True, exist_ok=True)
    failed = run_all(wanted, options)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed or had no time left; messages are above")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure the CUDA engine and its baselines.")
    made.add_argument("rows", nargs="*", help="which rows, in this order; all of them if none is named")
    made.add_argument("--skip", nargs="+", default=[], metavar="ROW", help="rows to leave out")
    made.add_argument("--out", type=Path, help="folder for raw lines; bench/results/<GPU> without")
    made.add_argument("--kernels", type=Path, help="kernel folder of a CUDA engine; compiled here, and kept, without")
    made.add_argument("--bundle", type=Path, help="a finished bundle of SmolLM2-135M, for rows with real weights")
    made.add_argument("--seconds", type=float, help="stop then, the row that is being measured included")
    made.add_argument("--row", help=argparse.SUPPRESS)
    return made


def run_all(rows: list[str], options: argparse.Namespace) -> list[str]:
    """Measure rows one after the other, for as long as there is time; name those that are not complete."""
    from bench.gpu.device import source_digest
    from bench.gpu.files import is_complete, row_file
    from bench.gpu.processes import RowProcess
    from bench.gpu.rows import ROWS

    end = time.monotonic() + options.seconds if options.seconds else None
    complete = [row for row in rows if is_complete(row_file(options.out, row), source_digest())]
    for row in complete:
        print(f"{row}: measured already", flush=True)
    waiting = [row for row in rows if row not in complete]
    failed, started = [], []
    try:
        for row in waiting:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                failed.append(row)
                continue
            process = started.pop() if started else RowProcess(row, options)
            following = waiting[waiting.index(row) + 1 :][:1]
            started += [RowProcess(name, options) for name in following if not ROWS[name].starts_on_gpu]
            if not process.measure(left):
                failed.append(row)
    finally:
        for process in started:
            process.stop()
    return failed


def measure(row: str, options: argparse.Namespace) -> None:
    """The process of one row: start up, wait for its turn, write its lines."""
    from bench.gpu.device import as_line, describe
    from bench.gpu.files import write_row
    from bench.gpu.processes import wait_for_turn
    from bench.gpu.rows import ROWS
    from plugins.cuda.library import add_folder, keep_compiled

    keep_compiled(Path(os.environ.get("ENGINEWRIGHT_HOME") or ".enginewright", "cache", "cubins"))
    if options.kernels is not None:
        add_folder(options.kernels)
    arguments = {"bundle": options.bundle} if ROWS[row].takes_bundle else {}
    lines = ROWS[row].measure(**arguments)
    wait_for_turn()
    write_row(options.out, row, chain([{**as_line(describe()), "row": row}], lines))


if __name__ == "__main__":
    main()
