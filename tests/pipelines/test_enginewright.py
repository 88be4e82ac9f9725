"""The `enginewright` command: one door to everything, light to open, and what it says is true."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cache import Cache, Metadata
from pipelines.config import PathsConfig
from pipelines.doctor import diagnose, store_state
from pipelines.enginewright import main, overrides_of, parser
from runtime.targets import installed
from tests.pipelines.test_cli import REPOSITORY

COMMANDS = ["engine", "plan", "generate", "chat", "verify", "bench", "inspect", "diff", "doctor", "clean-cache", "sign",
            "ui", "publish", "pull", "promote", "rollback"]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGINEWRIGHT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def make_entry(home: Path, stage: str, key: str) -> None:
    entry = Cache(home / "cache").entry(stage, key)
    with entry.lock():
        (entry.begin() / "content/file").write_bytes(b"12345")
        entry.publish(Metadata(stage, key, {}))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    assert f"usage: enginewright {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--json"], ["clean-cache"]])
def test_no_command_that_only_looks_imports_a_heavy_library(arguments: list[str]) -> None:
    code = (
        "import contextlib, sys, pipelines.enginewright as command\n"
        f"with contextlib.suppress(SystemExit):\n    command.main({arguments})\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_a_plan_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, pipelines.planning.model as model, pipelines.enginewright as command\n"
        "from pipelines.planning.wheel_size import Size\nmodel.wheel_size = lambda *_: Size(1, '')\n"
        "command.main(['plan', '--json'])\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_options_of_a_build_become_overrides_wherever_they_stand() -> None:
    options = parser().parse_args(
        ["engine", "--model", "a.gguf", "--precision", "fp32", "cache=off", "bench.repeats=1"]
    )
    assert overrides_of(options) == ["model=a.gguf", "precision=fp32", "cache=off", "bench.repeats=1"]
    assert overrides_of(parser().parse_args(["plan", "--target", "cpu"])) == ["target=[cpu]"]


def test_options_of_hydra_reach_the_build_and_no_other_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[str] = []
    monkeypatch.setattr(sys, "argv", ["enginewright"])
    monkeypatch.setattr("pipelines.cli.main", lambda: given.extend(sys.argv[1:]))
    main(["engine", "-m", "precision=bf16,fp32"])
    assert given == ["-m", "precision=bf16,fp32"]
    for arguments in (["plan", "-m", "precision=bf16"], ["inspect", "--nonsense"]):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments)
        assert f"{arguments[0]} takes no {arguments[1]}" in capsys.readouterr().err


def test_a_command_on_a_bundle_takes_the_latest_by_default(home: Path) -> None:
    assert parser().parse_args(["inspect"]).bundle == home / "bundles/latest"
    with pytest.raises(SystemExit, match=r"^error: .*home/bundles/latest: no engine bundle here"):
        main(["inspect"])


def test_clean_cache_says_what_it_freed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_entry(home, "convert", "k")
    main(["clean-cache", "--max-gb", "0", "--dry-run"])
    assert capsys.readouterr().out.startswith("would remove convert/k (last used 0.0 days ago)")
    assert (home / "cache/convert/k").exists()
    main(["clean-cache", "--max-gb", "0"])
    assert "; 0 stages stay, 0.0 MB" in capsys.readouterr().out
    assert not (home / "cache/convert/k").exists()
    with pytest.raises(SystemExit, match=r"^error: max_gb is -1\.0; it must be 0 or more"):
        main(["clean-cache", "--max-gb", "-1"])


def test_the_doctor_of_a_bundle_ends_with_its_verdict(home: Path) -> None:
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["doctor", "--bundle", str(home)])


def test_the_doctor_describes_the_installation_and_the_store_and_changes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", "--json"])
    assert not home.exists()
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"]
    assert found["machine"]["memory_bytes"] > 0
    assert {target["name"]: target["build"]["possible"] for target in found["targets"]} == {
        "cpu": True, "cuda": True, "onnx": True, "tensorrt_rtx": bool(installed("tensorrt-rtx")),
        "tensorrt": bool(installed("tensorrt")), "tensorrt_llm": True
    }  # fmt: skip
    main(["doctor"])
    text = capsys.readouterr().out
    assert "no NVIDIA GPU" in " ".join(text.split())


def test_the_doctor_counts_what_is_old_damaged_held_and_left_over(home: Path) -> None:
    paths = PathsConfig(str(home))
    for key in ("old", "damaged", "held"):
        make_entry(home, "convert", key)
    (home / "cache/convert/damaged/content/file").unlink()
    (home / "cache/convert/left.tmp").mkdir()
    with Cache(paths.cache).entry("convert", "held").lock():
        state = store_state(paths)
    assert (state.entries, state.old_entries, state.damaged_entries) == (3, 2, 1)
    assert (state.held_locks, state.free_locks, state.leftovers) == (1, 2, 1)
    assert diagnose(paths).store.held_locks == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["plan", "MODEL=a b.gguf", "TARGET=cpu"], "plan --model 'a b.gguf' --target 'cpu'"),
        (["doctor", "BUNDLE=x"], "doctor --bundle 'x'"),
        (["doctor"], "doctor"),
        (["diff", "A=x", "B=y"], "diff 'x' 'y'"),
        (["clean-cache", "MAX_GB=5", "DRY=1"], "clean-cache --max-gb 5 --dry-run"),
    ],
)
def test_make_hands_its_variables_on(given: list[str], words: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "PYTHON=py", *given], cwd=REPOSITORY, capture_output=True, text=True
    )
    line = " ".join(done.stdout.splitlines()[-1].split())
    assert line == f"py -m pipelines.enginewright {words}"
