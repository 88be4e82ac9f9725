"""Costs on a clock that only the timed functions move."""

import json
import math

import pytest
import torch

from runtime.device_costs import device_key, interpolate, load_or_measure
from runtime.speculation.cost_table import CostTable, measure_costs
from runtime.speculation.tree import TreeShape

KEY = {"device": "a machine", "torch": "2", "engine": "e", "drafter": "d"}
SHAPES = [TreeShape(12, 4, 4), TreeShape(32, 4, 4), TreeShape(8, 1, 7)]
TABLE = CostTable({(1, 1): 1.0, (1, 12): 2.0}, {(1, 4, 4): 0.25})


class Machine:
    """Takes 1 ms a step and 10 us a token; a draft takes 1 ms a depth."""

    def __init__(self, per_token=1e-5):
        self.now = 0.0
        self.per_token = per_token
        self.steps: list[tuple[int, int]] = []

    def clock(self):
        return self.now

    def target_step(self, batch_size, rows):
        self.steps.append((batch_size, rows))
        self.now += self.step_seconds(batch_size, rows)

    def step_seconds(self, batch_size, rows):
        return 1e-3 + self.per_token * batch_size * rows

    def draft(self, batch_size, shape):
        self.now += 1e-3 * shape.depth

    def measure(self, max_batch_size=16, max_num_tokens=4096):
        return measure_costs(
            self.target_step, self.draft, SHAPES, max_batch_size, max_num_tokens, budget_seconds=2.0, clock=self.clock
        )


def test_costs_are_what_the_clock_says_at_and_between_measured_sizes():
    machine = Machine()
    table = machine.measure()
    for batch_size, rows in [(1, 1), (16, 64), (3, 12), (8, 20), (5, 5), (32, 64), (1, 80)]:
        assert math.isclose(table.target_step(batch_size, rows), machine.step_seconds(batch_size, rows), rel_tol=1e-6)
    for shape in SHAPES:
        for batch_size in (1, 3, 16, 40):
            assert math.isclose(table.draft(batch_size, shape), 1e-3 * shape.depth, rel_tol=1e-6)


def test_a_call_that_runs_its_size_several_times_costs_its_share():
    machine = Machine()
    once = machine.measure()
    table = measure_costs(
        machine.target_step, machine.draft, SHAPES, 16, 4096, budget_seconds=2.0, runs_each=4, clock=machine.clock
    )
    assert table.target_step(1, 12) == pytest.approx(once.target_step(1, 12) / 4)
    assert table.draft(1, SHAPES[0]) == pytest.approx(once.draft(1, SHAPES[0]) / 4)


def test_batch_sizes_end_at_the_limit():
    table = Machine().measure(max_batch_size=6)
    assert {batch for batch, _ in table.target_seconds} == {1, 2, 4, 6}


def test_steps_too_large_for_the_engine_are_not_run_but_bounded():
    machine = Machine()
    table = machine.measure(max_num_tokens=64)
    assert max(batch * rows for batch, rows in machine.steps) <= 64
    assert table.target_step(16, 64) >= machine.step_seconds(16, 64)


def test_a_slow_machine_keeps_to_the_budget_and_bounds_the_rest():
    machine = Machine(per_token=2e-3)  # the whole table would take 27 s
    table = machine.measure()
    assert machine.now < 2.0
    assert math.isclose(table.target_step(1, 1), 3e-3, rel_tol=1e-6)
    assert table.target_step(16, 64) >= machine.step_seconds(16, 64)


def test_interpolation_follows_the_points_and_never_falls_beyond_them():
    assert interpolate({2: 4.0, 4: 8.0}, 3) == 6.0
    assert interpolate({2: 4.0, 4: 8.0}, 1) == 4.0
    assert interpolate({2: 4.0, 4: 8.0}, 8) == 16.0
    assert interpolate({2: 4.0, 4: 2.0}, 8) == 2.0
    assert interpolate({1: 3.0}, 4) == 12.0


def keep(folder, key, measure, is_current):
    return load_or_measure(folder, key, CostTable.from_fields, measure, is_current)


def always(table):
    return True


def test_a_table_that_is_not_current_is_measured_again_and_replaced(tmp_path):
    old, new = CostTable({(1, 1): 9.0}, {}), CostTable({(1, 1): 1.0}, {})
    keep(tmp_path, KEY, lambda: old, always)
    assert keep(tmp_path, KEY, lambda: new, lambda table: table != old) == new
    assert keep(tmp_path, KEY, lambda: old, lambda table: table != old) == new


def test_a_table_is_measured_once_per_device(tmp_path):
    calls = []
    for _ in range(2):
        assert keep(tmp_path / "costs", KEY, lambda: calls.append(1) or TABLE, always) == TABLE
    assert len(calls) == 1
    keep(tmp_path / "costs", KEY | {"torch": "3"}, lambda: calls.append(1) or TABLE, always)
    assert len(calls) == 2
    assert len(list((tmp_path / "costs").iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="cut short"),
        pytest.param(lambda text: "[]", id="not a table"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"key": KEY | {"device": "another"}}), id="foreign"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"target": [[1, 1, "x"]]}), id="not numbers"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"target": [[1, 1, float("nan")]]}), id="NaN"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"target": []}), id="empty"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"schema": 0}), id="old"),
    ],
)
def test_a_damaged_or_foreign_file_is_measured_again_and_replaced(tmp_path, damage):
    keep(tmp_path, KEY, lambda: CostTable({(1, 1): 9.0}, {}), always)
    (path,) = tmp_path.iterdir()
    path.write_text(damage(path.read_text()))
    assert keep(tmp_path, KEY, lambda: TABLE, always) == TABLE
    assert list(tmp_path.iterdir()) == [path]
    assert keep(tmp_path, KEY, lambda: pytest.fail("the file was not replaced"), always) == TABLE


def test_a_folder_that_cannot_be_written_costs_a_measurement_per_load_and_is_named(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert keep(tmp_path / "file", KEY, lambda: TABLE, always) == TABLE
    assert "measured costs cannot be kept" in caplog.text
    assert str(tmp_path / "file") in caplog.text


def test_the_key_of_this_machine_names_it():
    key = device_key(torch.device("cpu"), engine="engine", drafter="drafter")
    assert key["torch"] == torch.__version__
    assert "threads" in key["device"]
    assert device_key(torch.device("cpu"), engine="engine", drafter="another") != key
