"""What of this machine decides the outcome of a measurement; read from files, no tool and no driver is called."""

import os
import platform
from pathlib import Path

import psutil

# Instruction sets that PyTorch's CPU kernels choose between.
RELEVANT_FLAGS = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip


def fingerprint() -> dict[str, str | int | list[str]]:
    """The machine as plain data, the same at each start of it."""
    found: dict[str, str | int | list[str]] = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": sorted(set(RELEVANT_FLAGS).intersection(cpu_flags())),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }
    if gpus := gpu_names():
        found["gpus"] = gpus
    return found


def cpu_model() -> str:
    return first_value("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    return (first_value("flags") or first_value("Features")).split()


def first_value(key: str, path: Path = Path("/proc/cpuinfo")) -> str:
    """The first value of one key; empty where the system has none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def gpu_names(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The model of each NVIDIA GPU, from the driver's own files."""
    return [first_value("Model", path) for path in sorted(folder.glob("*/information"))]
