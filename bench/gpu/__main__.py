"""Measure rows on this machine's NVIDIA GPU, one process for each: `python -m bench.gpu --out DIR [ROW ...]`.

A row that is complete for the same sources is not measured again; its raw lines are in DIR/<row>.jsonl.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="Measure the CUDA engine and its baselines."
    )
    parser.add_argument("rows", nargs="*", help="which rows; all of them if none is named")
    parser.add_argument("--out", type=Path, help="folder for raw lines; bench/results/<GPU> without")
    parser.add_argument("--kernels", type=Path, help="kernel folder of a CUDA engine; compiled here without")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no NVIDIA GPU, or a torch without CUDA; run it where python -m runtime doctor names one")
    if options.out is None:
        options.out = Path("bench/results", torch.cuda.get_device_name().lower().replace(" ", "-"))
    if options.row:
        measure(options.row, options.out, options.kernels)
        return
    from bench.gpu.rows import ROWS

    unknown = sorted(set(options.rows) - set(ROWS))
    if unknown:
        sys.exit(f"error: no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    failed = [row for row in options.rows or ROWS if not run(row, options.out, options.kernels)]
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed; their messages are above")


def run(row: str, out: Path, kernels: Path | None) -> bool:
    """Measure one row in a process of its own, unless it is there already."""
    from bench.gpu.device import source_digest

    if is_complete(out / f"{row}.jsonl", source_digest()):
        print(f"{row}: measured already", flush=True)
        return True
    start = time.monotonic()
    command = [sys.executable, "-m", "bench.gpu", "--row", row, "--out", str(out)]
    done = subprocess.run(command + (["--kernels", str(kernels)] if kernels else []), check=False)
    print(f"{row}: {'done' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


def is_complete(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return bool(lines) and lines[0].get("source_digest") == digest and lines[-1] == {"kind": "end"}


def measure(row: str, out: Path, kernels: Path | None) -> None:
    from bench.gpu.device import as_line, describe
    from bench.gpu.rows import ROWS
    from plugins.cuda.library import add_folder

    if kernels is not None:
        add_folder(kernels)
    with (out / f"{row}.jsonl").open("w") as file:
        for line in ({**as_line(describe()), "row": row}, *ROWS[row](), {"kind": "end"}):
            file.write(json.dumps(line) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
