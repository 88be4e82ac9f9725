"""What is said of rows measured on a GPU follows from their raw lines; a row that was cut does not count."""

import json

import pytest

from bench.gpu.files import is_complete
from bench.gpu.plots import draw_decode
from bench.gpu.report import decode_cases, head, joined, medians, read_rows, table
from bench.gpu.roofline import Ceilings, share
from bench.gpu.rows import ROWS as ROW_FUNCTIONS
from bench.gpu.sections import sections, stacks

DEVICE = {"kind": "device", "name": "G", "driver": "1", "torch": "2", "source_digest": "d"}
END = {"kind": "end"}


def decode(system, value, batch_size=1):
    return {"metric": "decode", "system": system, "batch_size": batch_size, "unit": "tokens/s", "value": value}


def energy(system, value, seconds):
    return {"metric": "energy", "system": system, "batch_size": 1, "unit": "J/token", "value": value,
            "seconds": seconds}  # fmt: skip


ROWS = {
    "decode-m": [
        DEVICE,
        {"metric": "read_bandwidth", "unit": "bytes/s", "value": 1000.0},
        decode("enginewright", 90.0), decode("enginewright", 100.0), decode("enginewright", 400.0),
        decode("naive graph", 50.0), decode("transformers eager", 4.0),
        energy("enginewright", 0.2, 1.3), energy("enginewright", 0.1, 0.4), energy("naive graph", 0.6, 1.3),
    ],
    "compiled-m": [DEVICE, decode("transformers compiled", 20.0)],
}  # fmt: skip


def write(folder, rows):
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_rows_that_were_cut_are_not_read_and_are_measured_again(tmp_path):
    write(tmp_path, {"whole": [DEVICE, END], "cut": [DEVICE, decode("enginewright", 1.0)]})
    (tmp_path / "broken.jsonl").write_text(json.dumps(DEVICE) + '\n{"metric": "dec')
    assert list(read_rows(tmp_path)) == ["whole"]
    assert is_complete(tmp_path / "whole.jsonl", "d")
    assert not is_complete(tmp_path / "whole.jsonl", "other sources")
    assert not any(is_complete(tmp_path / f"{name}.jsonl", "d") for name in ("cut", "broken", "missing"))


def test_the_table_sets_medians_beside_the_best_baseline_and_the_roofline():
    lines = table(joined(ROWS)).splitlines()
    assert "| decode-m | decode batch 1 | 100 | tokens/s | naive graph 50 | 2.00 |  |" in lines
    assert "| decode-m | energy batch 1 | 0.2 | J/token | naive graph 0.6 | 3.00 |  |" in lines


def test_the_roofline_is_weights_and_keys_at_the_bandwidth_of_the_run_or_products():
    read = {"metric": "read_bandwidth", "unit": "bytes/s", "value": 3e12}
    rows = {"decode-llama-3.2-1b": [DEVICE, read, decode("enginewright", 600.0)]}
    weights, key = 2 * 1_235_746_816, 16 * 2 * 8 * 64 * 2  # bytes; of a key over all layers
    seconds = (weights + 192 * key) / 3e12
    assert f"| 600 | tokens/s |  |  | {600 * seconds:.0%} |" in table(rows)
    (case,) = decode_cases(rows)
    assert case.limit == pytest.approx(1 / seconds, rel=1e-3)  # norms' weights are in neither
    many = share("verify-llama-3.2-1b", "verify", "rows 32", "us", 1000.0, Ceilings(3e12, None))
    assert many == pytest.approx((weights + 288 * key) / 3e12 / 1e-3, rel=1e-3)
    assert share("prefill-llama-3.2-1b", "prefill", "prompt_len 8192", "ms", 40.0, Ceilings(3e12, None)) is None
    products = share("prefill-llama-3.2-1b", "prefill", "prompt_len 8192", "ms", 40.0, Ceilings(3e12, 8e14))
    assert products is not None
    assert 2 * 8192 * 973_078_528 / 8e14 / 0.04 < products < 1
    assert share("energy-m", "energy", "batch 1", "J/token", 1.0, Ceilings(3e12, None)) is None


def test_the_head_names_rows_of_other_sources():
    old = {**DEVICE, "source_digest": "old"}
    said = head({"a": [DEVICE], "b": [old], "c": [DEVICE]})
    assert "sources d. Of other sources: b (old)." in said
    assert "Of other sources" not in head({"a": [DEVICE]})


def test_rates_are_drawn_with_whatever_baselines_they_have():
    read = {"metric": "read_bandwidth", "unit": "bytes/s", "value": 3e12}
    lines = [DEVICE, read, decode("enginewright", 600.0), decode("naive graph", 300.0), decode("enginewright", 4e3, 8)]
    figure = draw_decode(decode_cases({"decode-llama-3.2-1b": lines, "decode-smollm2-135m": lines}), "G")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["smollm2-135m", "llama-3.2-1b"]
    assert "600\n2.00x" in [text.get_text() for text in figure.axes[1].texts]


def test_energy_of_too_short_a_run_does_not_count():
    assert medians(ROWS["decode-m"])["energy", "batch 1", "J/token"]["enginewright"] == 0.2


def test_every_baseline_has_its_ratio_wherever_it_was_measured():
    text = sections(joined(ROWS))
    assert "| m | decode, batch 1 | 25.0x | 5.0x | 2.0x |" in text
    prompt = {"metric": "prefill", "prompt_len": 8, "unit": "ms"}
    lines = [DEVICE, {**prompt, "system": "enginewright", "value": 2.0},
             {**prompt, "system": "transformers eager", "value": 12.0}]  # fmt: skip
    assert "| m | prefill, prompt 8 | 6.0x |  |  |" in sections({"prefill-m": lines})


def test_trees_and_prefixes_are_told_by_their_ratios():
    verify = [{"metric": "verify", "system": "enginewright", "rows": rows, "unit": "us", "value": value}
              for rows, value in ((1, 100.0), (32, 110.0))]  # fmt: skip
    reuse = [{"metric": "reuse", "system": system, "unit": "ms", "value": value}
             for system, value in (("cold", 40.0), ("warm", 2.0))]  # fmt: skip
    burst = [{"metric": "burst", "system": system, "request": request, "unit": "ms", "value": value}
             for system, request, value in (("none", 0, 1.0), ("none", 1, 90.0), ("reuse", 0, 1.0), ("reuse", 1, 30.0),
                                            ("warm", 1, 9.0))]  # fmt: skip
    text = sections({"verify-m": verify, "reuse-m": [*reuse, *burst]})
    assert "| m | enginewright | 100 us, 1.00x | 110 us, 1.10x |" in text
    assert "| m | one request | 40.0 | 2.00 | 20.0x |" in text
    assert "| m | eight at once | 90.0 | 30.00 | 3.0x |" in text
    assert "| m | eight at once, prefix computed | 90.0 | 9.00 | 10.0x |" in text


def test_attention_is_told_beside_every_kernel_that_was_measured():
    def line(system, value):
        return {"metric": "attention", "shape": "decode b1 1024", "system": system, "value": value}

    sizes = [{"metric": f"attention_{of}", "shape": "decode b1 1024", "value": value}
             for of, value in (("bytes", 4e6), ("flop", 2e7))]  # fmt: skip
    read = {"metric": "read_bandwidth", "unit": "bytes/s", "value": 3.2e12}
    lines = [DEVICE, read, line("enginewright", 5.0), line("torch SDPA", 10.0), line("FlashInfer", 6.0), *sizes]
    said = "| decode b1 1024 | 5.0 | torch SDPA 10.0, 2.00x; FlashInfer 6.0, 1.20x | 0.80 | 25% | 4 |"
    assert said in sections({"attention-d128": lines})


def test_losslessness_is_told_kernel_by_kernel():
    lines = [
        {"metric": "invariance", "kernel": kernel, "rows": rows, "equal": equal, "max_difference": difference}
        for kernel, rows, equal, difference in (("a", 1, True, 0.0), ("a", 64, True, 0.0), ("b", 1, False, 0.125),
                                                ("b", 64, True, 0.0))
    ]  # fmt: skip
    text = sections({"invariance-m": [DEVICE, *lines]})
    assert "| kernel | 1 row | 64 rows |" in text
    assert "| b | differ by 0.12 | equal |" in text


def test_speculation_is_told_beside_its_accepted_length():
    row = {"kind": "summary", "sampling": "greedy", "drafting": "32,4,6", "text": "all", "tokens_per_s": 5000.0,
           "ratio": 2.0, "accepted_length": 4.0, "equal_share": 1.0}  # fmt: skip
    text = sections({"speculation-m": [DEVICE, row, {**row, "text": "code"}]})
    assert text.count("32,4,6") == 1
    assert "| greedy | 32,4,6 | 5,000 | 2.00x | 4.00 | 0.50 | 1.000 |" in text


def test_a_stack_becomes_rows_of_stages():
    sample = {"metric": "stack", "repeat": 0, "num_tokens": 8, "ttft_s": [0.1], "pauses_s": [0.01], "alone_ttft_s": 0.1,
              "alone_token_s": 0.01}  # fmt: skip
    samples = [{**sample, "stage": "eager", "total_s": 4.0}, {**sample, "stage": "graph", "total_s": 1.0}]
    rows = {"stack-m": [DEVICE, *samples]}
    (stages,) = stacks(rows).values()
    assert [(row.stage, row.gain) for row in stages] == [("eager", 1.0), ("graph", 4.0)]
    assert "| graph | 1.000 | 4.00x | 4.0x |" in sections(rows)


def test_every_row_has_what_it_calls():
    """Rows run on GPUs alone; here at least all that they import is there."""
    assert next(iter(ROW_FUNCTIONS)) == "decode-llama-3.2-1b"
    assert all(callable(row.measure) for row in ROW_FUNCTIONS.values())
    assert all(row.takes_bundle for row in ROW_FUNCTIONS.values() if row.needs_bundle)


def test_nothing_is_said_of_what_was_not_measured():
    assert sections({"verify-m": [DEVICE]}) == ""
    assert stacks({"verify-m": [DEVICE]}) == {}
