"""GPU architectures: what kernels are compiled for, what has been run, and which images run on which GPU."""

import json
from pathlib import Path

# Cubins run on their architecture and later ones of its major version (sm_90a: on its own alone); PTX, on all newer.
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_80")
# What TensorRT-RTX builds plans for, and what of that unless told.
ALL_RTX_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
RTX_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_120")
# The oldest driver branch that loads cubins of CUDA 13.0.
MINIMUM_DRIVER = 580
RUNS_FILE = Path(__file__).with_name("runs.json")


def device_archs(capability: tuple[int, int]) -> list[str]:
    """Return the archs whose images run on a GPU, best first: its own, older ones of its major version, then PTX."""
    major, minor = capability
    ptx = ["compute_80"] if capability >= (8, 0) else []
    return [f"sm_{major}{minor}a", *(f"sm_{major}{m}" for m in range(minor, -1, -1)), *ptx]


def own_arch(capability: tuple[int, int]) -> str:
    """Return the arch to compile for where only this GPU is to run it."""
    major, minor = capability
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


def archs_run() -> tuple[str, ...]:
    """Return the archs whose images have passed a GPU's tests: `make test-gpu` writes the file. Others only compile."""
    return tuple(json.loads(RUNS_FILE.read_text(encoding="utf-8")))
