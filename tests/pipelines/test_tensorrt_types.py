"""The code that calls TensorRT, checked against the types of tensorrt-stubs: the library itself may not be installable.

The stubs are one of generated text that is no Python in places; those are mended in a copy. Of what they have no types
(tensorrt.plugin, TensorRT-RTX's own calls), nothing is checked.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("tensorrt", "tensorrt_bindings")
CHECKED = ("pipelines/tensorrt/", "runtime/backends/slots/plan_session.py", "runtime/tensorrt_engine.py")
MENDED = (
    (" in: ", " in_: "),
    ("power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = ...)"),
)


def stubs() -> Path | None:
    """The folder that has them: ENGINEWRIGHT_TENSORRT_STUBS, or where pip put them."""
    if folder := os.environ.get("ENGINEWRIGHT_TENSORRT_STUBS"):
        return Path(folder)
    try:
        return Path(str(importlib.metadata.distribution("tensorrt-stubs").locate_file("")))
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(stubs() is None, reason="needs types: pip install --no-deps tensorrt-stubs")
def test_calls_of_tensorrt_have_the_types_of_its_stubs(tmp_path: Path) -> None:
    found = stubs()
    assert found is not None
    for package in PACKAGES:
        shutil.copytree(found / package, tmp_path / package)
    file = tmp_path / "tensorrt_bindings/tensorrt.pyi"
    text = file.read_text()
    for wrong, right in MENDED:
        text = text.replace(wrong, right)
    file.write_text(text)
    settings = (REPOSITORY / "pyproject.toml").read_text()
    skipped = 'module = ["tensorrt.*", "tensorrt_rtx.*"]'
    assert skipped in settings
    config = tmp_path / "pyproject.toml"
    config.write_text(settings.replace(skipped, 'module = ["tensorrt.plugin.*", "tensorrt_rtx.*"]'))
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache"),
               "-p", "pipelines.tensorrt", "-m", "runtime.tensorrt_engine"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
                          env=os.environ | {"MYPYPATH": str(tmp_path)})  # fmt: skip
    assert re.search(r"checked \d+ source files", done.stdout), done.stdout[-2000:] + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(CHECKED) and "error:" in line] == []
