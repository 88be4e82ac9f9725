"""The stage runner's promises, on toy stages with real files, real keys, real processes and a real SIGKILL."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cache import Entry
from pipelines.cleaning import Limits, clean
from pipelines.config import CachePolicy, PathsConfig
from pipelines.keys import Node
from pipelines.runner import StageResult
from runtime.errors import EnginewrightError
from tests.pipelines.toy_runner import make_runner, run_slow

STAGES = """
import json
from dataclasses import dataclass
from pathlib import Path
from pipelines.stage import StageOutput
from runtime.errors import EnginewrightError
from toy import helper

@dataclass(frozen=True)
class Config:
    value: str = "a"
    fails: str = ""

@dataclass(frozen=True)
class Base:
    name: str
    libraries: tuple = ("filelock",)
    hardware_bound: bool = False
    resources: tuple = ()

    def run(self, config, inputs, out_dir, context):
        context.log.info("working on %s", config.value)
        (out_dir / "report.json").write_text(json.dumps(config.value))
        (out_dir / "weights.bin").write_bytes(b"w" * 2**20 * (17 if config.fails else 1))
        if config.fails == "gate":
            raise EnginewrightError("agreement 0.1 is below 0.9")
        if config.fails == "bug":
            raise ZeroDivisionError("oops")
        for name, artifact in inputs.items():
            (out_dir / f"{name}.txt").write_text((artifact.path / "report.json").read_text())
        return StageOutput(metrics={"speed_ms": 2.0}, summary="fine")

STAGE = Base("first")
"""
SLOW = '''
import time
from pathlib import Path
from pipelines.stage import StageOutput
from toy.stages import Base

class Slow(Base):
    """Takes as long as the file `pause` exists, then half a second; counts how often it ran."""

    def run(self, config, inputs, out_dir, context):
        root = Path(config.value)
        with (root / "runs").open("a") as file:
            file.write("ran with scratch %s\\n" % sorted(path.name for path in context.scratch_dir.iterdir()))
        (context.scratch_dir / "step-1").touch()
        (out_dir / "half.txt").write_text("same")
        (root / "started").touch()
        while (root / "pause").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        return StageOutput()

STAGE = Slow("slow")
'''
SECOND = 'from toy.stages import Base\nSTAGE = Base("second")\n'
RANDOM = """
import os
from pipelines.stage import StageOutput
from toy.stages import Base
class Random(Base):
    def run(self, config, inputs, out_dir, context):
        (out_dir / "x.bin").write_bytes(os.urandom(8))
        return StageOutput()
STAGE = Random("random")
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package `toy` of stages, importable."""
    folder = tmp_path / "toys"
    (folder / "toy").mkdir(parents=True)
    files = {"__init__": "", "helper": "X = 1\n", "stages": STAGES, "slow": SLOW, "second": SECOND, "random": RANDOM}
    for name, text in files.items():
        (folder / "toy" / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def pair(tmp_path: Path, toys: Path) -> Callable[..., tuple[StageResult, StageResult]]:
    """Run two stages, the second on the first's output."""

    def run(
        first: str = "a", second: str = "b", policy: CachePolicy = CachePolicy.on, fails: str = ""
    ) -> tuple[StageResult, StageResult]:
        from toy.stages import Config  # type: ignore[import-not-found]

        runner = make_runner(tmp_path, toys, policy)
        one = runner.run(Node("toy.stages", Config(first)), {})
        return one, runner.run(Node("toy.second", Config(second, fails)), {"first": one})

    return run


Pair = Callable[..., tuple[StageResult, StageResult]]


def cached(results: tuple[StageResult, StageResult]) -> tuple[bool, bool]:
    return results[0].cached, results[1].cached


def published(root: Path) -> list[str]:
    return sorted(path.parent.name for path in (root / "cache").rglob("artifact.json"))


def test_a_second_run_is_all_hits_with_the_same_artifacts(pair: Pair) -> None:
    built, again = pair(), pair()
    assert (cached(built), cached(again)) == ((False, False), (True, True))
    assert [result.artifact for result in built] == [result.artifact for result in again]
    assert again[0].artifact.metrics == {"speed_ms": 2.0}


def test_a_change_of_configuration_misses_what_depends_on_it_alone(pair: Pair) -> None:
    pair()
    assert cached(pair(second="c")) == (True, False)
    assert cached(pair(first="d")) == (False, False)
    assert cached(pair()) == (True, True)


def test_a_change_of_code_misses_and_equal_output_ends_the_chain(pair: Pair, toys: Path) -> None:
    pair()
    (toys / "toy/helper.py").write_text("X = 2\n")
    assert cached(pair()) == (False, False)
    (toys / "toy/second.py").write_text(SECOND + "UNUSED = 1\n")
    assert cached(pair()) == (True, False)
    (toys / "toy/second.py").write_text(SECOND + "UNUSED = 1  # a comment\n")
    assert cached(pair()) == (True, True)


def test_metadata_says_what_the_key_was_made_from(pair: Pair) -> None:
    first, second = pair()
    metadata = json.loads((second.artifact.path.parent / "artifact.json").read_text())
    assert metadata["made_from"]["inputs"] == {"first": first.artifact.digest}
    assert metadata["made_from"]["config"] == {"value": "b", "fails": ""}
    assert set(metadata["made_from"]["libraries"]) == {"python", "filelock"}
    assert len(metadata["key"]) == 64
    assert "working on b" in (second.artifact.path.parent / "stage.log").read_text()


def test_a_users_file_that_changed_is_a_miss(tmp_path: Path, toys: Path) -> None:
    from toy.stages import Config

    source = tmp_path / "model.gguf"
    source.write_text("one")
    node = Node("toy.stages", Config(), external=(source,))
    runner = make_runner(tmp_path, toys)
    assert [runner.run(node, {}).cached for _ in range(2)] == [False, True]
    source.write_text("three")
    assert not runner.run(node, {}).cached


def test_readonly_reads_and_refuses_to_build(pair: Pair) -> None:
    with pytest.raises(EnginewrightError, match="stage first is not in the cache and cache=readonly"):
        pair(policy=CachePolicy.readonly)
    pair()
    assert cached(pair(policy=CachePolicy.readonly)) == (True, True)


def test_redo_builds_the_same_digests_again(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    before, after = pair(), pair(policy=CachePolicy.redo)
    assert cached(after) == (False, False)
    assert [result.artifact.digest for result in before] == [result.artifact.digest for result in after]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_redo_says_which_stage_gave_another_output(
    tmp_path: Path, toys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from toy.stages import Config

    first = make_runner(tmp_path, toys).run(Node("toy.random", Config()), {})
    second = make_runner(tmp_path, toys, CachePolicy.redo).run(Node("toy.random", Config()), {})
    assert "stage random gave another output" in caplog.text
    assert make_runner(tmp_path, toys).run(Node("toy.random", Config()), {}).artifact == second.artifact
    assert first.artifact.digest != second.artifact.digest


@pytest.mark.parametrize("damage", ["shorter", "missing", "metadata"])
def test_a_damaged_artifact_is_built_again(pair: Pair, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = pair()
    weights, metadata = first.artifact.path / "weights.bin", first.artifact.path.parent / "artifact.json"
    if damage == "shorter":
        weights.write_bytes(b"w")
    elif damage == "missing":
        weights.unlink()
    else:
        metadata.write_text('{"files": [')
    again = pair()
    assert cached(again) == (False, True)
    assert again[0].artifact.digest == first.artifact.digest
    assert caplog.text.count("damaged") == 1


def test_a_changed_byte_is_found_where_inputs_are_checked_and_redo_mends_it(
    tmp_path: Path, toys: Path, pair: Pair
) -> None:
    from toy.stages import Config

    first, _ = pair()
    weights = first.artifact.path / "weights.bin"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    node = Node("toy.second", Config("checked"), check_inputs=True)
    runner = make_runner(tmp_path, toys)
    with pytest.raises(EnginewrightError, match=r"first was changed \(weights.bin\); build again with cache=redo"):
        runner.run(node, {"first": first})
    mended, _ = pair(policy=CachePolicy.redo)
    assert not Entry(mended.artifact.path.parent).damaged_files(mended.metadata)
    assert not runner.run(node, {"first": mended}).cached


def test_a_failed_gate_keeps_log_and_report_and_publishes_nothing(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(EnginewrightError, match=r"second: agreement 0.1 is below 0.9 \(log and report: .*\)"):
        pair(fails="gate")
    (kept,) = (tmp_path / "failed").iterdir()
    assert sorted(path.name for path in (kept / "content").iterdir()) == ["report.json"]  # 17 MiB of data are not
    assert "agreement 0.1" in (kept / "stage.log").read_text()
    assert [path.parent.parent.name for path in (tmp_path / "cache").rglob("artifact.json")] == ["first"]
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_bug_keeps_its_traceback_and_says_where(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        pair(fails="bug")
    (kept,) = (tmp_path / "failed").iterdir()
    assert caught.value.__notes__ == [f"stage second failed; log and report: {kept}"]
    assert "ZeroDivisionError: oops" in (kept / "stage.log").read_text()


def start_slow(root: Path, toys: Path, log: str = "log") -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("toy_runner.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (root / log).open("w") as file:
        return subprocess.Popen([sys.executable, script, root, toys], env=environment, stderr=file)


def wait_for(path: Path, text: str = "") -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, -2)])
def test_a_killed_build_leaves_no_artifact_and_its_scratch_folder(
    tmp_path: Path, toys: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "pause").touch()
    process = start_slow(tmp_path, toys)
    wait_for(tmp_path / "started")
    process.send_signal(number)
    assert process.wait(20) == code
    assert not published(tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.tmp"))) == (1 if number is signal.SIGKILL else 0)
    (tmp_path / "pause").unlink()

    result = run_slow(tmp_path, toys)
    runs = (tmp_path / "runs").read_text().splitlines()
    assert runs == ["ran with scratch []", "ran with scratch ['step-1']"]
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert not list((tmp_path / "cache").rglob("*.scratch"))

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert run_slow(fresh, toys).artifact.digest == result.artifact.digest


def test_two_builds_at_once_do_the_work_once(tmp_path: Path, toys: Path) -> None:
    (tmp_path / "pause").touch()
    processes = [start_slow(tmp_path, toys, "log-0")]
    wait_for(tmp_path / "started")
    processes.append(start_slow(tmp_path, toys, "log-1"))
    wait_for(tmp_path / "log-1", "another build is making slow; waiting for it")
    (tmp_path / "pause").unlink()
    assert [process.wait(20) for process in processes] == [0, 0]
    assert (tmp_path / "runs").read_text() == "ran with scratch []\n"
    assert len(published(tmp_path)) == 1


def test_what_libraries_log_while_a_stage_runs_is_in_its_log(tmp_path: Path) -> None:
    from pipelines.stagelog import stage_log

    with stage_log(tmp_path / "stage.log", "x") as logger:
        logging.getLogger("some.library").warning("deprecated")
        logger.info("ours")
    logging.getLogger("some.library").warning("later")
    lines = (tmp_path / "stage.log").read_text()
    assert "deprecated" in lines
    assert "ours" in lines
    assert "later" not in lines


def test_a_build_keeps_what_it_uses_from_being_cleaned_and_marks_it_used(tmp_path: Path, toys: Path) -> None:
    from toy.stages import Config

    maker = make_runner(tmp_path, toys)
    folder = maker.run(Node("toy.stages", Config("a")), {}).artifact.path.parent
    paths = PathsConfig(str(tmp_path))
    assert [found.path for found in clean(paths, Limits(max_gb=0)).in_use] == [folder]
    maker.cache.release()
    os.utime(folder / "artifact.json", (0, 0))
    runner = make_runner(tmp_path, toys)
    assert runner.run(Node("toy.stages", Config("a")), {}).cached
    assert (folder / "artifact.json").stat().st_mtime > 0
    assert [found.path for found in clean(paths, Limits(max_gb=0)).in_use] == [folder]
    runner.cache.release()
    assert [found.path for found, _ in clean(paths, Limits(max_gb=0)).removed] == [folder]
