"""The committed reports of `make test-gpu`: whether they passed, and whether the kernels have changed since."""

import json
import warnings

import pytest

from plugins.cuda.archs import RUNS_FILE
from tests.gpu_report import REPORT_FILE, RESULTS, kernel_sources_digest, modules, runs

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


def test_what_builds_say_of_architectures_is_what_the_reports_say():
    assert json.loads(RUNS_FILE.read_text()) == runs()


def test_an_architecture_has_run_where_a_run_without_failures_loaded_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.gpu_report.RESULTS", tmp_path)
    assert runs() == {}
    every = (("a", "2026-01-01", 0, ["sm_80", "compute_80"]), ("b", "2026-01-02", 1, ["sm_89"]),
             ("c", "2026-01-03", 0, ["compute_80"]))  # fmt: skip
    for name, date, failed, archs in every:
        (tmp_path / name).mkdir()
        report = {"device": name, "driver": "1", "date": date, "kernel_sources": "d", "failed": failed,
                  "images": {arch: {"k": "d"} for arch in archs}}  # fmt: skip
        (tmp_path / name / REPORT_FILE).write_text(json.dumps(report))
    assert {arch: said["device"] for arch, said in runs().items()} == {"compute_80": "c", "sm_80": "a"}


def test_only_modules_with_gpu_tests_are_collected():
    names = {path.rsplit("/", 1)[1] for path in modules()}
    assert {"test_cuda.py", "test_no_waits.py", "test_attention_cuda.py", "test_pointwise_cuda.py"} <= names
    assert "test_engine.py" not in names
