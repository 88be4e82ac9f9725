"""Rows in processes of their own, one at a time: while one measures, the next starts up and waits for its turn.

Starting up is all that leaves the GPU alone: imports, and reading files. What a row does after it has its turn nothing
runs beside.
"""

import argparse
import subprocess
import sys
import time
from contextlib import suppress

from bench.gpu.files import part_file


class RowProcess:
    """A row that has been started, and measures once it is given its turn."""

    def __init__(self, row: str, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "bench.gpu", "--row", row, "--out", str(options.out)]
        for name in ("kernels", "bundle"):
            if getattr(options, name) is not None:
                command += [f"--{name}", str(getattr(options, name))]
        self.row = row
        self._part = part_file(options.out, row)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def measure(self, left_s: float | None) -> bool:
        """Give it its turn, and wait until it has ended; whether its file is there."""
        started = time.monotonic()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and its exit code says how
            self._process.stdin.write("\n")
            self._process.stdin.close()
        try:
            ended = "FAILED" if self._process.wait(left_s) else "done"
        except subprocess.TimeoutExpired:
            ended = "out of time"
        self.stop()
        print(f"{self.row}: {ended} in {time.monotonic() - started:.0f} s", flush=True)
        return ended == "done"

    def stop(self) -> None:
        """End it where it still runs, and leave no half of a file."""
        self._process.kill()
        self._process.wait()
        self._part.unlink(missing_ok=True)


def wait_for_turn() -> None:
    """In a row's process: return when nothing else measures.

    Raises:
        SystemExit: whoever would say so is gone.
    """
    if not sys.stdin.readline():
        sys.exit(1)
