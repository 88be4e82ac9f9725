"""Measuring: the work is the same every time, systems take turns, and the figures follow from the timings."""

import os
from itertools import pairwise

import pytest

from runtime.benchmark.memory import peak_memory
from runtime.benchmark.samples import Sample, summarise
from runtime.benchmark.settings import SuiteSettings
from runtime.benchmark.suite import RawRun, run_suite, to_samples
from runtime.benchmark.systems import EngineSystem, Timings
from runtime.benchmark.workloads import (
    MIXED_MAX_LEN,
    MIXED_NEW_TOKENS,
    MIXED_PROMPT_LENS,
    Workload,
    mixed_workload,
    uniform_workload,
)
from runtime.errors import EnginewrightError
from tests.runtime.tiny import SPEC, make_engine

CLEAR_REFS = "/proc/self/clear_refs"
SETTINGS = SuiteSettings(batch_sizes=(1, 2), prompt_lens=(8,), new_tokens=3, repeats=3, warmups=2, mixed_requests=3)
# 0.5 s to the first token, then 10 ms and 30 ms for the two steps after it.
TIMINGS = Timings(ttft_s=0.5, step_s=[0.01, 0.03], num_tokens=12)


class RecordedSystem:
    """Writes down whose turn it was with which workload."""

    def __init__(self, name, turns):
        self.name, self.turns = name, turns

    def run(self, workload):
        self.turns.append((self.name, workload))
        return TIMINGS


def recorded_suite(settings=SETTINGS):
    turns = []
    systems = {name: RecordedSystem(name, turns) for name in ("enginewright", "transformers")}
    texts = []
    runs = list(run_suite(systems, settings, SPEC.vocab_size, lambda _, text: texts.append(text)))
    return turns, runs, texts


def cleared_refs():
    try:
        with open(CLEAR_REFS, "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def test_a_workload_is_the_same_every_time_and_another_for_other_sizes():
    assert uniform_workload(4, 16, 8, 100) == uniform_workload(4, 16, 8, 100)
    assert mixed_workload(5, 100) == mixed_workload(5, 100)
    assert uniform_workload(4, 16, 8, 100).prompts != uniform_workload(5, 16, 8, 100).prompts[:4]
    # Pinned: figures of different versions are comparable only while the work is the same.
    assert uniform_workload(1, 4, 2, 1000) == Workload([[425, 680, 140, 436]], [2])


def test_uniform_requests_are_alike_in_length_but_not_in_content():
    work = uniform_workload(3, 16, 8, 50)
    assert [len(prompt) for prompt in work.prompts] == [16] * 3
    assert work.new_tokens == [8] * 3
    assert len({tuple(prompt) for prompt in work.prompts}) == 3
    assert all(0 <= token < 50 for prompt in work.prompts for token in prompt)


def test_mixed_requests_keep_to_their_ranges_and_to_a_short_context():
    work = mixed_workload(64, 50)
    lens = [len(prompt) for prompt in work.prompts]
    assert MIXED_PROMPT_LENS[0] <= min(lens) < max(lens) <= MIXED_PROMPT_LENS[1]
    assert MIXED_NEW_TOKENS[0] <= min(work.new_tokens) < max(work.new_tokens) <= MIXED_NEW_TOKENS[1]
    short = mixed_workload(64, 50, max_len=96)
    pairs = list(zip(short.prompts, short.new_tokens, strict=True))
    assert max(len(prompt) + count for prompt, count in pairs) == 96
    assert all(prompt and count for prompt, count in pairs)
    assert all(cut == whole[: len(cut)] for cut, whole in zip(short.prompts, work.prompts, strict=True))
    assert mixed_workload(64, 50, MIXED_MAX_LEN) == work


def test_what_an_engine_cannot_hold_is_not_measured():
    settings = SuiteSettings(prompt_lens=(32, 512), new_tokens=32)
    assert settings.fitted(2048) == settings
    assert settings.fitted(544).prompt_lens == (32, 512)
    short = settings.fitted(543)
    assert (short.prompt_lens, short.mixed_max_len) == ((32,), 543)
    with pytest.raises(EnginewrightError, match="holds 63 tokens together: measure prompts of at most 31"):
        settings.fitted(63)


@pytest.mark.parametrize("batch_size", [1, 3, 6], ids=["one", "a part batch", "more than a batch"])
def test_the_engine_is_timed_from_the_first_request_to_the_last_token(checkpoint, batch_size):
    engine = make_engine(checkpoint)
    work = uniform_workload(batch_size, 10, 5, SPEC.vocab_size)
    timings = EngineSystem(engine).run(work)
    assert timings.num_tokens == 5 * batch_size
    assert timings.ttft_s > 0
    assert all(step > 0 for step in timings.step_s)
    if batch_size <= engine.backend.limits.max_batch_size:  # all prefilled in one step, then one token each a step
        assert len(timings.step_s) == 4
    assert not engine.has_work
    assert engine.scheduler.pool.num_free == engine.backend.limits.num_blocks


def test_end_tokens_do_not_shorten_the_work(checkpoint):
    counts = []

    class CountingEngine:
        """Passes everything on and counts the tokens that come."""

        def __init__(self, engine):
            self.engine = engine
            self.add = engine.add
            self.forget_prefixes = engine.forget_prefixes

        @property
        def has_work(self):
            return self.engine.has_work

        def step(self):
            counts.append(len(events := self.engine.step()))
            return events

    engine = make_engine(checkpoint)
    engine._eos_token_ids = frozenset(range(SPEC.vocab_size))  # whatever comes is an end token
    work = mixed_workload(5, SPEC.vocab_size, max_len=40)
    assert EngineSystem(CountingEngine(engine)).run(work).num_tokens == sum(work.new_tokens) == sum(counts)


def test_a_late_reader_is_timed_by_what_the_host_has(checkpoint):
    timings = EngineSystem(make_engine(checkpoint, read_lag=1)).run(uniform_workload(2, 10, 5, SPEC.vocab_size))
    assert timings.num_tokens == 10
    assert len(timings.step_s) >= 4


def test_no_run_is_helped_by_the_one_before(checkpoint):
    engine = make_engine(checkpoint)
    for _ in range(2):
        EngineSystem(engine).run(uniform_workload(2, 20, 3, SPEC.vocab_size))
    assert engine.prefix_stats.queries == 4 * 20
    assert engine.prefix_stats.hits == 0


def test_systems_take_turns_in_going_first_on_the_same_work():
    turns, _, _ = recorded_suite()
    rounds = [turns[start : start + 2] for start in range(0, len(turns), 2)]
    assert all({name for name, _ in turn} == {"enginewright", "transformers"} for turn in rounds)
    assert all(turn[0][1] == turn[1][1] for turn in rounds)
    per_work = SETTINGS.warmups + SETTINGS.repeats
    for start in range(0, len(rounds), per_work):
        first = [turn[0][0] for turn in rounds[start : start + per_work]]
        assert all(one != other for one, other in pairwise(first))


def test_warm_up_is_run_and_not_recorded():
    turns, runs, texts = recorded_suite()
    num_workloads = 3  # two batch sizes and the mixed one
    assert len(turns) == 2 * num_workloads * (SETTINGS.warmups + SETTINGS.repeats)
    assert len(runs) == 2 * num_workloads * SETTINGS.repeats
    assert {run.repeat for run in runs} == {0, 1, 2}
    assert sum("warm-up" in text for text in texts) == num_workloads * SETTINGS.warmups
    sizes = [(run.batch_size, run.prompt_len) for run in runs if run.repeat == 0 and run.system == "enginewright"]
    assert sizes == [(1, 8), (2, 8), (3, 0)]


def test_prefill_and_decode_are_told_apart():
    """4 requests of 100 tokens: 400 / 0.5 s; then 4 tokens every 20 ms on average."""
    samples = to_samples(RawRun("enginewright", 4, 100, 2, TIMINGS))
    figures = {(sample.case, sample.unit): sample.value for sample in samples}
    assert figures == pytest.approx(
        {
            ("prefill", "tokens/s"): 800.0,
            ("prefill", "ms"): 500.0,
            ("decode", "tokens/s"): 200.0,
            ("decode", "ms"): 20.0,
        }
    )
    assert {(sample.system, sample.batch_size, sample.prompt_len, sample.repeat) for sample in samples} == {
        ("enginewright", 4, 100, 2)
    }


def test_a_step_that_brings_several_tokens_counts_for_all_of_them():
    """4 requests of 3 tokens: 2 each in one step of 40 ms, as often as a token each in two of 20 ms."""
    (at_once,) = (
        sample.value
        for sample in to_samples(RawRun("enginewright", 4, 100, 0, Timings(ttft_s=0.5, step_s=[0.04], num_tokens=12)))
        if (sample.case, sample.unit) == ("decode", "tokens/s")
    )
    assert at_once == pytest.approx(200.0)


def test_mixed_requests_give_output_tokens_over_all_of_the_time():
    """12 tokens in 0.5 + 0.01 + 0.03 s."""
    (sample,) = to_samples(RawRun("transformers", 16, 0, 0, TIMINGS))
    assert sample == Sample("transformers", "mixed", 16, 0, 0, sample.value, "tokens/s")
    assert sample.value == pytest.approx(12 / 0.54)


def test_medians_and_ratios_are_larger_is_better_in_either_unit():
    fast, slow = Timings(0.1, [0.01], 2), Timings(0.4, [0.03], 2)
    runs = [RawRun("enginewright", 1, 8, repeat, fast) for repeat in range(2)]
    runs += [RawRun("transformers", 1, 8, repeat, slow) for repeat in range(2)]
    rows = summarise(sample for run in runs for sample in to_samples(run))
    ratios = {(row.case, row.unit): row.ratio for row in rows if row.system == "enginewright"}
    assert ratios == pytest.approx(
        {("prefill", "tokens/s"): 4, ("prefill", "ms"): 4, ("decode", "tokens/s"): 3, ("decode", "ms"): 3}
    )
    assert all(row.ratio == 1 for row in rows if row.system == "transformers")


@pytest.mark.skipif(not cleared_refs(), reason=f"{CLEAR_REFS} cannot be written here: no peak can be told")
def test_peak_memory_sees_what_is_freed_before_the_end():
    num_bytes = 64 * 2**20
    with peak_memory() as peak:
        block = b"x" * num_bytes  # written, not just reserved
        del block
    assert 0.9 * num_bytes < peak.added_bytes < 1.5 * num_bytes
    with peak_memory() as quiet:
        pass
    assert quiet.added_bytes < num_bytes / 4  # what came before does not count


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr("runtime.benchmark.memory._CLEAR_REFS", tmp_path / "no" / os.path.basename(CLEAR_REFS))
    with peak_memory() as peak:
        pass
    assert peak.added_bytes is None
