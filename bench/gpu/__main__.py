"""Measure rows on this machine's NVIDIA GPU, one process for each: `python -m bench.gpu --out DIR [ROW ...]`.

A row that is complete for the same sources is not measured again; its raw lines are in DIR/<row>.jsonl.
"""

import argparse
import json
import os
import subprocess
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

    end = time.monotonic() + options.seconds if options.seconds else None
    failed = []
    for row in rows:
        if is_complete(options.out / f"{row}.jsonl", source_digest()):
            print(f"{row}: measured already", flush=True)
            continue
        left = None if end is None else end - time.monotonic()
        if (left is not None and left <= 0) or not run(row, options, left):
            failed.append(row)
    return failed


def run(row: str, options: argparse.Namespace, left_s: float | None) -> bool:
    """Measure one row in a process of its own."""
    start = time.monotonic()
    command = [sys.executable, "-m", "bench.gpu", "--row", row, "--out", str(options.out)]
    for name in ("kernels", "bundle"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    try:
        code = subprocess.run(command, check=False, timeout=left_s).returncode
        ended = "done" if code == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        code, ended = 1, "out of time"
    print(f"{row}: {ended} in {time.monotonic() - start:.0f} s", flush=True)
    return code == 0


def is_complete(path: Path, digest: str) -> bool:
    """Whether a row was measured to its end, of these sources."""
    try:
        first, *_, last = map(json.loads, path.read_text().splitlines())
    except (OSError, ValueError):  # never begun, or ended in the middle of a line
        return False
    return bool(first.get("source_digest") == digest and last == {"kind": "end"})


def measure(row: str, options: argparse.Namespace) -> None:
    from bench.gpu.device import as_line, describe
    from bench.gpu.rows import ROWS
    from plugins.cuda.library import add_folder, keep_compiled

    keep_compiled(Path(os.environ.get("ENGINEWRIGHT_HOME") or ".enginewright", "cache", "cubins"))
    if options.kernels is not None:
        add_folder(options.kernels)
    arguments = {"bundle": options.bundle} if ROWS[row].takes_bundle else {}
    with (options.out / f"{row}.jsonl").open("w") as file:
        first, last = {**as_line(describe()), "row": row}, {"kind": "end"}
        for line in chain([first], ROWS[row].measure(**arguments), [last]):
            file.write(json.dumps(line) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
