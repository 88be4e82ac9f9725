"""Rows of `python -m bench.gpu`: one process measures at a time, the next has started up, files are whole or absent."""

import argparse
import json
import subprocess
import sys
import time

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import processes, rows
from bench.gpu.files import END, is_complete, row_file, write_row
from bench.gpu.rows import Row

CHILD = """
import sys, time
from pathlib import Path
row, folder = sys.argv[sys.argv.index("--row") + 1], Path(sys.argv[sys.argv.index("--out") + 1])
log = folder / "log"
say = lambda what: log.open("a").write(f"{row} {what}\\n")
if row == "broken": sys.exit(3)
say("started")
if not sys.stdin.readline(): sys.exit(1)
say("measures")
(folder / f"{row}.part").write_text("half")
time.sleep(60 if row == "endless" else 0.5)
say("ends")
(folder / f"{row}.part").rename(folder / f"{row}.jsonl")
"""


@pytest.fixture
def options(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    popen = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda command, **rest: popen([sys.executable, script, *command[3:]], **rest)
    )
    names = {name: Row(lambda: iter(())) for name in ("a", "b", "broken", "endless")}
    monkeypatch.setattr(rows, "ROWS", names | {"compiled": Row(lambda: iter(()), starts_on_gpu=True)})
    return argparse.Namespace(out=tmp_path, kernels=None, bundle=None, seconds=None)


def said(options) -> list[str]:
    return (options.out / "log").read_text().split("\n")[:-1]


def test_a_row_starts_up_while_the_one_before_measures_and_then_waits(options):
    assert command.run_all(["a", "b"], options) == []
    assert said(options).index("b started") < said(options).index("a ends") < said(options).index("b measures")


def test_a_row_that_starts_on_the_gpu_has_nothing_beside_it(options):
    assert command.run_all(["a", "compiled", "b"], options) == []
    assert said(options).index("a ends") < said(options).index("compiled started")


def test_a_row_that_fails_costs_no_other(options):
    assert command.run_all(["a", "broken", "b"], options) == ["broken"]
    assert row_file(options.out, "b").exists()


def test_where_time_runs_out_no_half_of_a_row_is_left_and_nothing_runs_on(options):
    options.seconds = 4.0
    started = time.monotonic()
    assert command.run_all(["a", "endless", "b"], options) == ["endless", "b"]
    assert time.monotonic() - started < 20
    assert sorted(path.name for path in options.out.iterdir()) == ["a.jsonl", "child.py", "log"]


def test_an_older_file_stays_until_the_row_has_been_measured_again(tmp_path):
    def lines(fails):
        yield {"kind": "device", "source_digest": "new"}
        if fails:
            raise RuntimeError

    old = json.dumps({"kind": "device", "source_digest": "old"}) + "\n" + json.dumps(END) + "\n"
    row_file(tmp_path, "r").write_text(old)
    with pytest.raises(RuntimeError):
        write_row(tmp_path, "r", lines(fails=True))
    assert is_complete(row_file(tmp_path, "r"), "old")
    write_row(tmp_path, "r", lines(fails=False))
    assert is_complete(row_file(tmp_path, "r"), "new")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_without_a_gpu_it_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    with pytest.raises(SystemExit, match="error: no NVIDIA GPU, or a torch without CUDA; run it where"):
        command.main()
