"""Measured choices of kernels: what is chosen, when it is read, and that a pass takes it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from runtime.backends.cuda import CudaBackend
from runtime.errors import EnginewrightError
from runtime.formats.manifest import ATTESTATIONS_DIR
from runtime.model.layer_steps import usual_rows
from runtime.tuning import NO_CHOICES, TUNE_DIR, Choices, Timing, choose, measure, read_choices, write_tuning
from tests.runtime.tiny import SPEC

DEVICE = "NVIDIA H100 80GB HBM3, sm_90, 132 SMs"
TIMINGS = [
    Timing(1, "whole_step", 350.0), Timing(1, "ops", 900.0), Timing(4, "whole_step", 700.0), Timing(4, "ops", 690.0),
    Timing(8, "ops", 1000.0),
]  # fmt: skip


@pytest.fixture
def bundle(tmp_path):
    """A bundle's folder with an engine, and what was measured on DEVICE."""
    engine_dir = tmp_path / "engines/cuda"
    engine_dir.mkdir(parents=True)
    (engine_dir / "kernels.json").write_text("{}")
    write_tuning(tmp_path / ATTESTATIONS_DIR / TUNE_DIR, engine_dir, DEVICE, TIMINGS, {"driver": "580"})
    return tmp_path


def test_the_fastest_of_each_number_of_rows_is_taken_and_a_pass_takes_the_next_number_up():
    choices = choose(TIMINGS)
    assert choices == Choices({1: "whole_step", 4: "ops", 8: "ops"})
    assert [choices.path(rows) for rows in (1, 2, 4, 5, 8, 9)] == ["whole_step", "ops", "ops", "ops", "ops", None]
    assert NO_CHOICES.path(1) is None


def test_choices_are_read_where_device_and_kernels_are_those_that_were_measured(bundle, caplog):
    engine_dir = bundle / "engines/cuda"
    assert read_choices(bundle, engine_dir, DEVICE) == choose(TIMINGS)
    assert read_choices(bundle, engine_dir, DEVICE.replace("132", "114")) is NO_CHOICES
    assert not caplog.records
    (engine_dir / "kernels.json").write_text('{"other": 1}')
    assert read_choices(bundle, engine_dir, DEVICE) is NO_CHOICES
    assert "measured with other kernels, not used; tune the bundle again" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "device": "x"}'])
def test_a_damaged_file_costs_a_warning_and_nothing_else(bundle, caplog, text):
    (path,) = (bundle / ATTESTATIONS_DIR / TUNE_DIR).iterdir()
    assert path.name == "nvidia-h100-80gb-hbm3-sm-90-132-sms.json"
    path.write_text(text)
    assert read_choices(bundle, bundle / "engines/cuda", DEVICE) is NO_CHOICES
    assert "unreadable" in caplog.text


def test_the_file_keeps_every_timing_and_a_folder_that_cannot_be_written_is_an_error(bundle):
    (path,) = (bundle / ATTESTATIONS_DIR / TUNE_DIR).iterdir()
    assert json.loads(path.read_text())["timings"] == [vars(timing) for timing in TIMINGS]
    with pytest.raises(EnginewrightError, match=r"cannot be written .*; copy the bundle and tune that"):
        write_tuning(path, bundle / "engines/cuda", DEVICE, TIMINGS, {})


class Backend:
    """Kernels that take a few rows, and ops that take all; `ran` has what was run."""

    def __init__(self):
        self.ran = []

    def paths(self, batch):
        return ["few", "ops"] if batch <= (1, 4) else ["ops"]

    def forward_on(self, path, batch):
        self.ran.append((path, batch))

    def prepared(self, run):
        return run


def test_every_kind_is_timed_over_what_it_takes_one_request_or_many(monkeypatch):
    backend = Backend()
    monkeypatch.setattr("runtime.tuning._median_us", lambda run: run() or 2.0)
    timings = measure(backend, lambda requests, tokens: (requests, tokens), 8, lambda share, text: None)
    assert [(one.rows, one.path) for one in timings] == [
        (1, "few"), *[(rows, "ops") for rows in (1, 2, 4, 8, 16, 32, 64)]
    ]  # fmt: skip
    assert ("ops", (8, 1)) in backend.ran
    assert ("ops", (16, 1)) not in backend.ran  # more requests than the engine runs
    assert {replace(one, rows=1, path="") for one in timings} == {Timing(1, "", 2.0)}


class Kernels:
    """Kernels that take up to `most` rows."""

    def __init__(self, most):
        self._most = most

    def takes(self, batch):
        return len(batch.token_ids) <= self._most


@pytest.fixture
def taken(monkeypatch):
    """Says which kernels a pass over so many rows takes, of an engine without a GPU."""

    def call(rows, choices=NO_CHOICES):
        backend = object.__new__(CudaBackend)
        backend._few_rows = {"whole_step": Kernels(4), "layer_steps": Kernels(64)}
        backend._choices, backend._usual_rows = choices, 20
        monkeypatch.setattr(CudaBackend, "forward_on", lambda self, path, batch: path)
        return backend.forward(SimpleNamespace(token_ids=range(rows)))

    return call


def test_without_choices_a_pass_takes_what_is_usually_fastest(taken):
    assert [taken(rows) for rows in (1, 4, 5, 20, 21, 64, 65)] == [
        "whole_step", "whole_step", "layer_steps", "layer_steps", "ops", "ops", "ops"
    ]  # fmt: skip


def test_a_pass_takes_what_was_measured_where_those_kernels_take_it(taken):
    choices = Choices({1: "ops", 4: "layer_steps", 8: "whole_step", 64: "layer_steps"})
    assert [taken(rows, choices) for rows in (1, 3, 8, 64)] == ["ops", "layer_steps", "layer_steps", "layer_steps"]


def test_larger_layers_gain_from_their_own_launches_at_fewer_rows():
    small, large = replace(SPEC, num_layers=30), replace(SPEC, num_layers=1, hidden_size=4096, intermediate_size=16384)
    assert usual_rows(small) > usual_rows(large)


def test_wide_layers_gain_from_their_own_launches_at_any_number_of_rows_where_the_gpu_has_them():
    wide = replace(
        SPEC, hidden_size=2048, num_heads=32, num_kv_heads=8, head_dim=64, intermediate_size=8192, vocab_size=2048
    )
    assert usual_rows(wide, has_wide=True) == 64
    assert usual_rows(wide) < 64
    assert usual_rows(SPEC, has_wide=True) == usual_rows(SPEC)
