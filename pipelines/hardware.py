"""What of this machine decides the outcome of a measurement; read from files, no tool and no driver is called."""

import os

import psutil

from runtime.machine import RELEVANT_FLAGS, cpu_flags, cpu_model, gpu_names


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
