"""Speculation's counters."""

from runtime.speculation.statistics import SpeculationSnapshot, SpeculationStatistics


def test_counts_of_requests_add_up_in_the_total():
    total = SpeculationStatistics()
    first, second = SpeculationStatistics(total), SpeculationStatistics(total)
    first.record_draft(num_draft_tokens=11, num_accepted_tokens=3, num_emitted_tokens=4)
    first.record_draft(num_draft_tokens=5, num_accepted_tokens=0, num_emitted_tokens=1)
    second.record_draft(num_draft_tokens=11, num_accepted_tokens=2, num_emitted_tokens=2)  # ended inside the path
    second.record_step()
    assert first.snapshot() == SpeculationSnapshot(2, 16, 3, (1, 1, 1), 2, 5)
    assert second.snapshot() == SpeculationSnapshot(1, 11, 2, (1, 1), 2, 3)
    assert total.snapshot() == SpeculationSnapshot(3, 27, 5, (2, 2, 1), 4, 8)
    assert total.snapshot().accepted_length == 2.0
    assert total.snapshot().acceptance_rate == 5 / 27


def test_the_difference_of_snapshots_is_what_was_recorded_between():
    statistics = SpeculationStatistics()
    statistics.record_draft(7, 1, 2)
    before = statistics.snapshot()
    statistics.record_draft(7, 4, 5)
    statistics.record_step()
    assert statistics.snapshot() - before == SpeculationSnapshot(1, 7, 4, (1, 1, 1, 1), 2, 6)


def test_before_the_first_step_nothing_is_divided_by_zero():
    empty = SpeculationStatistics().snapshot()
    assert (empty.accepted_length, empty.acceptance_rate) == (1.0, 0.0)
    assert empty - empty == empty
