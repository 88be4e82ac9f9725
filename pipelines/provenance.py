"""Where and with what a build ran: tags of its runs, never part of what it builds."""

import os
import platform
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from runtime.machine import cpu_model, gpu_names

LIBRARIES = ("torch", "transformers", "enginewright")


@cache
def environment_tags() -> dict[str, str]:
    """Host, process, versions and the commit of our own code."""
    tags = {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "pid_started": str(psutil.Process().create_time()),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        **{name: found for name in LIBRARIES if (found := installed_version(name))},
        **git_tags(Path(__file__).resolve().parent),
    }
    if gpus := gpu_names():
        tags["gpu"] = ", ".join(gpus)
    return tags


def is_running(pid: int, started: float) -> bool:
    """Whether the process of that number is the one that started then."""
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return False


def git_tags(folder: Path) -> dict[str, str]:
    """The commit and whether tracked files differ from it; nothing outside a checkout."""
    commit = git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": str(bool(dirty)).lower()}


def git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
