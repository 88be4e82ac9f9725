"""The TensorRT-LLM of this machine, asked as a bundle's scripts ask: by the program on PATH and its interpreter."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from pipelines.target_config import TensorrtLlmTargetConfig
from pipelines.tensorrt_llm.versions import NAME, PROGRAMS
from runtime.errors import EnginewrightError

INSTALLED = "installed"  # the version that takes what is here
ASK = "from importlib.metadata import version; print(version('tensorrt_llm'))"
TIMEOUT_S = 60


def installed_version() -> str:
    """The version of the first of its programs on PATH; "" where there is none or it does not say."""
    program = next((found for name in PROGRAMS.values() if (found := shutil.which(name))), None)
    if program is None:
        return ""
    try:
        first = Path(program).read_bytes().partition(b"\n")[0].decode(errors="replace")
        interpreter = first.removeprefix("#!").split() if first.startswith("#!") and "python" in first else ["python3"]
        done = subprocess.run([*interpreter, "-c", ASK], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def resolved(target: TensorrtLlmTargetConfig) -> TensorrtLlmTargetConfig:
    """The settings with `installed` replaced by the version that is.

    Raises:
        EnginewrightError: none is.
    """
    if target.version != INSTALLED:
        return target
    version = installed_version()
    if not version:
        raise EnginewrightError(
            f"{NAME} is 'installed', and neither {' nor '.join(PROGRAMS.values())} is on PATH with its package; state "
            "a version, such as 1.2.1"
        )
    return replace(target, version=version)
