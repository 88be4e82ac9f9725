"""The command line as a user meets it: exit codes, one line for a mistake, the bundle's place, sweeps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipelines.cli

COMMAND = """
import functools, pipelines.build, pipelines.cli
pipelines.cli.run_build = functools.partial(pipelines.build.run_build, stages="tests.pipelines.toy_engine")
pipelines.cli.main()
"""
REPOSITORY = Path(__file__).parents[2]


def command(root: Path, *arguments: str, real: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, on the toy stages unless `real`."""
    start = ["-m", "pipelines"] if real else ["-c", COMMAND]
    environment = {**os.environ, "ENGINEWRIGHT_HOME": str(root), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, env=environment, cwd=root, timeout=60
    )


@pytest.mark.parametrize("override", ["model=smolm2", "verify.num_promts=3", "precision=bf17", "+verify.x=1"])
def test_a_mistake_is_one_line_exit_1_and_no_trace(tmp_path: Path, override: str) -> None:
    done = command(tmp_path, override, real=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no ")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_the_configuration_can_be_shown_without_building(tmp_path: Path) -> None:
    done = command(tmp_path, "--cfg", "job", "verify.num_prompts=5", real=True)
    assert done.returncode == 0
    assert "num_prompts: 5" in done.stdout
    assert f"root: {tmp_path}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_build_ends_with_a_summary_and_a_bundle_that_is_no_part_of_the_cache(tmp_path: Path) -> None:
    first = command(tmp_path, "tracking=off")
    assert first.returncode == 0, first.stderr
    assert "verify did it" in first.stderr
    assert "make generate PROMPT=" in first.stderr
    latest = tmp_path / "bundles/latest"
    bundle = latest.resolve()
    assert bundle.name.startswith("smollm2-135m-bf16-")
    assert f"bundles/{bundle.name}" in first.stderr
    manifest = bundle / "manifest.json"
    assert manifest.stat().st_nlink == 1
    packaged = manifest.read_text()

    manifest.write_text("edited")
    second = command(tmp_path, "tracking=off", "cache=readonly")
    assert second.stderr.count("cached") >= 12  # a line and a row for each stage
    assert manifest.read_text() == packaged
    assert [path.name for path in (tmp_path / "bundles").iterdir() if path.name.startswith(".")] == [".lock"]


def test_nothing_is_kept_but_the_bundle_without_a_cache(tmp_path: Path) -> None:
    abandoned = tmp_path / "uncached/abandoned"
    abandoned.mkdir(parents=True)
    done = command(tmp_path, "tracking=off", "cache=off")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "uncached"]
    assert not list((tmp_path / "uncached").iterdir())


def test_a_failed_gate_exits_1_and_names_its_report(tmp_path: Path) -> None:
    done = command(tmp_path, "tracking=off", "verify.num_prompts=13")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: verify: greedy agreement 0.1 is below 0.95 (log and report: ")
    assert Path(last.rpartition(": ")[2].rstrip(")")).is_dir()
    assert not (tmp_path / "bundles").exists()


def test_a_sweep_builds_each_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    done = command(tmp_path, "-m", "tracking=off", "verify.num_prompts=13,4,5")
    assert done.returncode == 1
    assert done.stderr.count("Bundle ") == 2
    assert "greedy agreement" in done.stderr.splitlines()[-1]
    assert len([path for path in (tmp_path / "bundles").glob("*/manifest.json") if path.parent.name != "latest"]) == 2


def test_ctrl_c_exits_130_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    slow = COMMAND.replace("pipelines.cli.main()", "import tests.pipelines.toy_engine.common as toys, time, pathlib\n"
                           "toys.ToyStage.run = lambda *_: (pathlib.Path('started').touch(), time.sleep(30))\n"
                           "pipelines.cli.main()")  # fmt: skip
    environment = {**os.environ, "ENGINEWRIGHT_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "tracking=off"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; stages that were finished stay cached"
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("artifact.json"))


def test_a_bug_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("a bug, although Hydra raises ValueError too")

    monkeypatch.setattr(pipelines.cli, "run_build", broken)
    monkeypatch.setattr(sys, "argv", ["enginewright", f"paths.root={tmp_path}"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ValueError, match="a bug"):
            pipelines.cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_stages_are_light_to_import() -> None:
    """A cached build imports every stage for its key; none may bring in a heavy library."""
    code = (
        "import importlib, pkgutil, sys, pipelines.stages as stages\n"
        "for module in pkgutil.iter_modules(stages.__path__):\n"
        "    importlib.import_module(f'pipelines.stages.{module.name}')\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'matplotlib', 'gguf'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr or done.stdout
