"""`make test-gpu`: run the tests that need a GPU, and write down which one it was, which kernels, and how they ended.

The report is committed as bench/results/<device>/test-gpu.json, and what all reports say of architectures as
plugins/cuda/runs.json, which builds read; tests/plugins/cuda/test_gpu_report.py checks both.
"""

import hashlib
import json
import platform
import re
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from plugins.cuda.archs import RUNS_FILE

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
REPORT_FILE = "test-gpu.json"
TESTS = ("tests/plugins", "tests/runtime")  # of which modules without a GPU test are left out: they need more packages


def modules() -> list[str]:
    """The test modules that have something to run on a GPU."""
    every = [path for folder in TESTS for path in sorted((REPOSITORY / folder).rglob("test_*.py"))]
    return [str(path) for path in every if re.search(r"mark\.gpu|kernel_device", path.read_text(encoding="utf-8"))]


def kernel_sources_digest() -> str:
    """The sha256 of every kernel source and header: names and bytes."""
    plugins, digest = REPOSITORY / "plugins", hashlib.sha256()
    for path in sorted([*plugins.rglob("*.cu"), *plugins.rglob("*.cuh")]):
        digest.update(f"{path.relative_to(plugins).as_posix()}\0{path.read_text(encoding='utf-8')}\0".encode())
    return digest.hexdigest()


class Outcomes:
    """A pytest plugin that keeps how each test ended, and what all processes loaded: see `tests.gpu_images`."""

    def __init__(self) -> None:
        self.tests: dict[str, str] = {}
        self.images: dict[str, dict[str, str]] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A process of pytest-xdist has ended."""
        self._add(node.workeroutput.get("images", {}))

    def pytest_sessionfinish(self) -> None:
        from tests import gpu_images  # which pytest has imported by now

        self._add(gpu_images.LOADED)

    def _add(self, images: dict[str, dict[str, str]]) -> None:
        for arch, digests in images.items():
            self.images[arch] = dict(sorted({**self.images.get(arch, {}), **digests}.items()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            self.tests[report.nodeid] = report.outcome
        elif report.outcome == "failed":
            self.tests[report.nodeid] = "failed"


def runs() -> dict[str, dict[str, str]]:
    """What committed reports say: architecture -> the latest run without failures that loaded images for it."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob(f"*/{REPORT_FILE}")]
    found: dict[str, dict[str, str]] = {}
    for report in sorted(reports, key=lambda report: str(report["date"])):
        if not report["failed"]:
            said = {name: report[name] for name in ("device", "driver", "date", "kernel_sources")}
            found |= dict.fromkeys(report["images"], said)
    return dict(sorted(found.items()))


def device() -> dict[str, str]:
    """What the tests ran on."""
    import torch

    from plugins.cuda.nvrtc import nvrtc_version
    from runtime.machine import driver_version

    major, minor = torch.cuda.get_device_capability()
    return {
        "device": torch.cuda.get_device_name(), "arch": f"sm_{major}{minor}", "driver": driver_version(),
        "torch": torch.__version__, "cuda": str(torch.version.cuda), "nvrtc": nvrtc_version(),
        "python": platform.python_version(),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the tests, `arguments` being more of pytest's; give its exit code."""
    import torch

    if not torch.cuda.is_available():
        print("error: no NVIDIA GPU is visible to torch; run make test-gpu on a machine that has one", file=sys.stderr)
        return 1
    outcomes, started = Outcomes(), time.monotonic()
    code = int(pytest.main(["-m", "gpu", "-p", "tests.gpu_images", *modules(), *arguments], plugins=[outcomes]))
    found = device()
    report = {
        **found,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel_sources": kernel_sources_digest(),
        "seconds": round(time.monotonic() - started, 1),
        **{outcome: Counter(outcomes.tests.values())[outcome] for outcome in ("passed", "failed", "skipped")},
        "images": outcomes.images,
        "tests": dict(sorted(outcomes.tests.items())),
    }
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    RUNS_FILE.write_text(json.dumps(runs(), indent=1) + "\n", encoding="utf-8")
    print(f"{folder / REPORT_FILE}: {report['passed']} passed, {report['failed']} failed, {report['skipped']} skipped")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
