"""Costs of steps with chunks on a clock that only the timed steps move, and on a real engine."""

import json
import math

import pytest
import torch

from runtime.device_costs import load_or_measure
from runtime.errors import EnginewrightError
from runtime.loading import load_engine
from runtime.pacing.costs import ChunkCosts, measure_chunks
from runtime.pacing.measuring import is_current, measure_backend
from runtime.pacing.pace import seconds_of
from runtime.sampling import SamplingParams
from runtime.speculation.loading import SpeculationOptions
from tests.runtime.test_engine import alone, run
from tests.runtime.tiny import PLAN, make_engine, make_tokenizer

PARAMS = SamplingParams(max_tokens=9, ignore_eos=True)


class Machine:
    """1 ms a step, 50 us a decode, 20 ns a key it sees; a chunk takes 100 us, 10 us a token and 1 ns a key and token.

    A chunk's tokens are taken to see as many keys as the last of them.
    """

    def __init__(self):
        self.now, self.sizes = 0.0, []

    def run(self, size):
        self.sizes.append(size)
        self.now += self.decode(size.num_requests, size.num_requests * size.num_keys)
        self.now += self.chunk(size.chunk_len, size.chunk_keys - size.chunk_len) if size.chunk_len else 0.0

    @staticmethod
    def decode(num_requests, num_keys):
        return 1e-3 + 5e-5 * num_requests + 2e-8 * num_keys

    @staticmethod
    def chunk(num_tokens, start):
        return 1e-4 + 1e-5 * num_tokens + 1e-9 * num_tokens * (start + num_tokens)

    def measure(self, max_batch_size=16, max_num_tokens=2048, longest=9000):
        return measure_chunks(
            self.run, max_batch_size, max_num_tokens, longest, budget_seconds=20.0, clock=lambda: self.now
        )


@pytest.mark.parametrize(("num_requests", "keys_each"), [(1, 256), (4, 256), (4, 3000), (16, 1000), (10, 500)])
def test_a_step_of_decodes_costs_what_the_clock_says(num_requests, keys_each):
    num_keys = num_requests * keys_each
    seconds = Machine().measure().decode_step(num_requests, num_keys)
    assert math.isclose(seconds, Machine.decode(num_requests, num_keys), rel_tol=1e-6)


@pytest.mark.parametrize("start", [0, 300, 5000])
@pytest.mark.parametrize("num_tokens", [1, 16, 40, 256, 1024])
def test_a_chunk_costs_what_it_adds_to_the_clock(num_tokens, start):
    """A chord between measured lengths is off from the parabola of a chunk's own keys by 2 % at most here."""
    seconds = seconds_of(Machine().measure().chunk_points(start), num_tokens)
    assert math.isclose(seconds, Machine.chunk(num_tokens, start), rel_tol=0.02)


@pytest.mark.parametrize("limits", [(2, 64, 96), (4, 2, 96), (16, 2048, 300), (2, 2, 2), (64, 64, 4096)], ids=str)
def test_no_step_is_larger_than_the_engine_takes(limits):
    max_batch_size, max_num_tokens, longest = limits
    machine = Machine()
    costs = machine.measure(*limits)
    assert any(size.chunk_len for size in machine.sizes)
    for size in machine.sizes:
        assert size.num_requests + bool(size.chunk_len) <= max_batch_size
        assert size.num_requests + size.chunk_len <= max_num_tokens
        assert 0 < size.num_keys <= longest
        assert size.chunk_len <= size.chunk_keys <= longest
    assert costs.decode_step(1, costs.near_keys) > 0
    assert all(seconds > 0 for _, seconds in costs.chunk_points(0))


def test_points_of_a_noisy_measurement_never_fall():
    noisy = ChunkCosts(256, {1: 1.0}, 0.0, ((1, 0.5, 0.0), (4, 0.2, 1e-3), (16, 0.6, 0.0)))
    lines = ChunkCosts.from_fields(json.loads(json.dumps(noisy.to_fields()))).chunks
    assert [line.num_tokens for line in lines] == [1, 4, 16]
    for start in (0, 1000):
        seconds = [each for _, each in ChunkCosts(256, {1: 1.0}, 0.0, lines).chunk_points(start)]
        assert seconds == sorted(seconds)


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 0},
        {"decode": []},
        {"chunks": []},
        {"per_key": float("nan")},
        {"chunks": [[1, "x", 0]]},
        {"chunks": [1]},
    ],
    ids=str,
)
def test_a_file_that_holds_no_table_is_measured_again(tmp_path, damage):
    costs = Machine().measure()

    def keep(measure):
        return load_or_measure(tmp_path, {"device": "d"}, ChunkCosts.from_fields, measure, lambda _: True)

    assert keep(lambda: costs) == costs
    assert keep(lambda: pytest.fail("it was kept")) == costs
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    other = ChunkCosts(9, {1: 1.0}, 0.0, costs.chunks)
    assert keep(lambda: other) == other


def test_a_real_engine_is_timed_and_still_says_the_same(checkpoint):
    engine = make_engine(checkpoint)
    costs = measure_backend(engine.backend)
    assert all(seconds > 0 for seconds in costs.decode_seconds.values())
    assert [line.num_tokens for line in costs.chunks] == [1, 4, 16]
    assert is_current(engine.backend, costs)
    busy = dict.fromkeys(costs.decode_seconds, 1000.0)
    assert not is_current(engine.backend, ChunkCosts(costs.near_keys, busy, 0.0, costs.chunks))
    request = ([5, 6, 7], PARAMS)
    assert run(engine, [request])[0].output_ids == alone(checkpoint, request)


def test_steps_are_timed_over_keys_that_have_been_written(checkpoint):
    """Memory that nobody has written to is one page of zeros, which reads faster than a cache in use; or no numbers."""
    backend = make_engine(checkpoint).backend
    backend.cache.storage.fill_(torch.nan)
    measure_backend(backend)
    longest = -(-backend.limits.max_seq_len // backend.limits.block_size)
    assert not backend.cache.storage[:, :longest].isnan().any()


def test_an_engine_is_loaded_with_its_pace_and_the_costs_are_kept(checkpoint, tmp_path):
    PLAN.write(tmp_path)

    def load(ratio):
        options = SpeculationOptions("off", costs_dir=tmp_path / "costs")
        return load_engine(checkpoint, tmp_path, make_tokenizer(tmp_path), None, options, itl_ratio=ratio)

    def files():
        return list((tmp_path / "costs").glob("costs-*.json"))

    assert load("off").scheduler.pace is None
    assert not files()
    assert load("auto").scheduler.pace.ratio == 8.0
    assert load("1.5").scheduler.pace.ratio == 1.5
    assert len(files()) == 1
    with pytest.raises(EnginewrightError, match="itl_ratio='fast'"):
        load("fast")
