"""Summaries state medians, spread and a ratio that always means "times better"; every measured case gets a plot."""

import pytest

from pipelines.benchmark.plots import draw_burst, draw_case, draw_chunks, write_plots
from pipelines.benchmark.stack_plot import draw_stack
from runtime.benchmark.arrivals import BurstSample, ChunkRow
from runtime.benchmark.samples import Sample, summarise
from runtime.benchmark.stack import StackRow
from runtime.errors import EnginewrightError


def samples(case, unit, ours, theirs, batch_size=1, prompt_len=32):
    both = {"enginewright": ours, "transformers": theirs}
    return [
        Sample(system, case, batch_size, prompt_len, repeat, value, unit)
        for system, values in both.items()
        for repeat, value in enumerate(values)
    ]


def test_summary_of_throughput():
    ours, theirs = summarise(samples("decode", "tokens/s", [30.0, 50.0, 40.0], [20.0, 10.0, 21.0]))
    assert (ours.median, ours.min, ours.max, ours.num_repeats) == (40.0, 30.0, 50.0, 3)
    assert ours.ratio == 2.0
    assert theirs.ratio == 1.0


def test_less_time_is_better():
    ours, _ = summarise(samples("prefill", "ms", [50.0], [100.0]))
    assert ours.ratio == 2.0


def test_measurements_are_not_mixed_and_a_missing_opponent_has_no_ratio():
    lone = Sample("enginewright", "decode", 8, 32, 0, 70.0, "tokens/s")
    rows = summarise([*samples("decode", "tokens/s", [40.0], [20.0]), lone])
    assert [(row.batch_size, row.ratio) for row in rows] == [(1, 2.0), (1, 1.0), (8, None)]


@pytest.mark.parametrize(("field", "value"), [("case", "warmup"), ("value", float("nan")), ("value", 0.0)])
def test_unusable_samples_are_refused(field, value):
    good = {"system": "transformers", "case": "decode", "batch_size": 1, "prompt_len": 32, "repeat": 0,
            "value": 1.0, "unit": "tokens/s"}  # fmt: skip
    Sample(**good)
    with pytest.raises(EnginewrightError, match=str(value)):
        Sample(**{**good, field: value})


def test_every_case_with_throughput_gets_a_plot(tmp_path):
    rows = summarise(
        samples("decode", "tokens/s", [40.0], [20.0])
        + samples("decode", "ms", [25.0], [50.0])
        + samples("mixed", "tokens/s", [90.0], [45.0], batch_size=16, prompt_len=0)
    )
    paths = write_plots(rows, "tiny model, fp32, CPU", tmp_path)
    assert [path.name for path in paths] == ["decode.png", "mixed.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_plot_shows_bars_ratios_and_spread():
    rows = summarise(samples("decode", "tokens/s", [30.0, 50.0, 40.0], [20.0, 10.0, 21.0]))
    figure = draw_case(rows, "Decode throughput", "tiny model, fp32, CPU")
    (axes,) = figure.axes
    assert sorted(bar.get_height() for bar in axes.patches) == [20.0, 40.0]
    assert {"2.00×", "40.0", "20.0"} < {text.get_text() for text in axes.texts}  # noqa: RUF001
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["enginewright", "transformers"]


def test_burst_plot_shows_both_ways_for_every_request():
    samples = [
        BurstSample(reuse, request, 32, repeat, 0.1 * (request + 1) * (1 if reuse else 2) + repeat)
        for reuse in (True, False)
        for request in range(2)
        for repeat in range(3)
    ]
    figure = draw_burst(samples, "tiny")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([1100, 1200, 1200, 1400])


def test_chunk_plot_shows_fixed_budgets_and_ratios_beside_the_idle_latency():
    fixed = [ChunkRow(64, 512, 100.0, 900.0, 20.0, 10.0, 64.0), ChunkRow(128, 512, 150.0, 700.0, 35.0, 10.0, 128.0)]
    paced = ChunkRow(2048, 512, 80.0, 800.0, 15.0, 11.0, 32.0, 1.5)
    throughput, ttft, latency = draw_chunks([*fixed, paced], "tiny").axes
    assert [list(line.get_ydata()) for line in throughput.lines] == [[100.0, 150.0], [80.0]]
    assert [list(line.get_ydata()) for line in ttft.lines] == [[900.0, 700.0], [800.0]]
    assert [list(line.get_ydata()) for line in latency.lines] == [[20.0, 35.0], [15.0], [10.0, 10.0], [11.0]]
    for axes in (throughput, ttft, latency):
        assert [list(line.get_xdata()) for line in axes.lines][:2] == [[64.0, 128.0], [32.0]]
        assert [text.get_text() for text in axes.texts] == ["1.5"]
    assert [len(axes.lines) for axes in draw_chunks(fixed, "tiny").axes] == [1, 1, 2]


def test_a_waterfall_has_a_bar_per_stage_from_where_the_stage_before_was():
    def row(stage, total_s, gain):
        return StackRow(stage, total_s, gain, total_s * 10, 1.0, total_s, 10.0)

    figure = draw_stack([row("naive", 8.0, 1.0), row("graph", 2.0, 4.0), row("chunks", 4.0, 0.5)], "tiny, fp32")
    assert figure.get_suptitle() == "Where the speed comes from, one switch at a time: 2.0x naive\ntiny, fp32"
    waterfall, *felt = figure.axes
    first, *bars = waterfall.patches
    assert first.get_y() + first.get_height() == 8.0
    assert [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars] == [(2.0, 8.0), (2.0, 4.0)]
    assert [text.get_text() for text in waterfall.texts] == ["8 s", "4.00x\n2 s", "0.50x\n4 s"]
    assert bars[1].get_facecolor() != bars[0].get_facecolor(), "what costs time is told apart"
    assert felt[0].get_title(loc="left") == "time to first token, ms"
    assert len(felt) == 4
