"""Download one wheel with pip, in a process of its own."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pipelines.stage import StageContext
from runtime.errors import EnginewrightError

POLL_S = 0.2


def download_wheel(requirement: str, folder: Path, context: StageContext) -> Path:
    """Download the wheel of `dist==version`, without its dependencies, into a new `folder`; return its path.

    Raises:
        EnginewrightError: pip failed; its last words are in the message, all of them in the log.
    """
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--progress-bar", "off", "--dest", str(folder), requirement]
    output = folder / "pip.log"
    with output.open("wb") as log:
        # pip downloads into its temporary folder: in ours, its progress is seen and nothing is left elsewhere.
        environment = {**os.environ, "TMPDIR": str(temporary)}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                size = sum(path.stat().st_size for path in _files(temporary))
                context.progress.advance(0, 1, f"downloading {requirement}, {size / 2**20:.0f} MiB")
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.wait()
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    context.log.info("%s", "\n".join(lines))
    shutil.rmtree(temporary)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise EnginewrightError(
            f"pip cannot download {requirement} ({_last_words(lines)}); check the name, the version, the network "
            "and the package index that pip is configured for"
        )
    return wheels[0]


def _files(folder: Path) -> list[Path]:
    """Files below a folder that another process is changing."""
    return [Path(root, name) for root, _, names in os.walk(folder) for name in names if Path(root, name).is_file()]


def _last_words(lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no output"])[-1].removeprefix("ERROR:").strip()
