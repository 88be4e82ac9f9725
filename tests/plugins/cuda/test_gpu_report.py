"""The committed reports of `make test-gpu`: whether they passed, and whether the kernels have changed since."""

import json
import warnings

import pytest

from tests.gpu_report import REPORT_FILE, RESULTS, kernel_sources_digest

REPORTS = sorted(RESULTS.glob(f"*/{REPORT_FILE}"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_committed_report_is_of_a_run_without_failures(path):
    report = json.loads(path.read_text())
    assert report["failed"] == 0
    assert report["passed"] == sum(outcome == "passed" for outcome in report["tests"].values()) > 0
    assert report["device"]
    assert report["driver"]


def test_kernels_that_changed_since_the_last_run_on_a_gpu_are_told():
    if not any(json.loads(path.read_text())["kernel_sources"] == kernel_sources_digest() for path in REPORTS):
        what = "are newer than every report of" if REPORTS else "were never run by"
        warnings.warn(f"kernel sources {what} make test-gpu; run it on a machine with a GPU", stacklevel=1)
