"""The load generator against an endpoint of known timings: what it sends, what it records, what it refuses."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from pipelines.enginewright import main
from pipelines.load.command import measure
from pipelines.load.options import LoadOptions
from pipelines.load.prompts import make_prompts
from runtime.errors import EnginewrightError
from tests.pipelines.conftest import free_port
from tests.pipelines.load.fake_endpoint import Fake, running

FEW = {"requests": 4, "warmups": 0, "prompt_words": 5, "prefix_words": 30, "long_words": 60, "rate": 100.0}


def load(fake: Fake, out: Path, **options):
    with running(fake):
        return asyncio.run(measure(LoadOptions(url=fake.url, **{**FEW, **options}), out))


def test_times_are_those_of_the_endpoint(tmp_path):
    model, samples = load(Fake(), tmp_path, scenarios=("closed",), users=2)
    assert model == "tiny"
    assert len(samples["closed"]) == 4
    for sample in samples["closed"]:
        assert sample.error is None
        assert (sample.prompt_tokens, sample.output_tokens, sample.finish_reason) == (7, 6, "length")
        assert 0.05 <= sample.ttft_s < 0.5
        assert len(sample.gaps_s) == 2
        assert all(gap >= 0.015 for gap in sample.gaps_s)  # a sleep of 20 ms, seen through two sockets
        assert sample.total_s >= sample.text_s[-1] >= 0.09
        assert sample.tpot_s == pytest.approx(sum(sample.gaps_s) / 5)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["text_s"] for line in lines] == [sample.text_s for sample in samples["closed"]]


def test_without_usage_pieces_are_counted(tmp_path):
    _, samples = load(Fake(sends_usage=False), tmp_path, scenarios=("closed",))
    assert [(sample.output_tokens, sample.has_usage) for sample in samples["closed"]] == [(3, False)] * 4


@pytest.mark.parametrize(("scenario", "most"), [("closed", 2), ("burst", 4), ("poisson", 4)])
def test_arrivals_are_as_many_at_once_as_they_should_be(tmp_path, scenario, most):
    fake = Fake(waits_s=(0.2,))
    load(fake, tmp_path, scenarios=(scenario,), users=2, burst=4)
    assert fake.most_at_once == most


def test_a_poisson_request_counts_from_when_it_was_due(tmp_path):
    _, samples = load(Fake(), tmp_path, scenarios=("poisson",), requests=20, rate=200.0)
    dues = [sample.due_s for sample in sorted(samples["poisson"], key=lambda sample: sample.index)]
    assert dues == sorted(dues)
    assert 0.5 * 20 / 200 < dues[-1] < 2 * 20 / 200
    assert all(sample.ttft_s > sample.sent_s >= 0 for sample in samples["poisson"])


def test_the_body_asks_for_usage_and_for_extras_only_when_told(tmp_path):
    plain, asked = Fake(), Fake()
    load(plain, tmp_path, scenarios=("closed",))
    load(asked, tmp_path, scenarios=("closed",), ignore_eos=True, api="completions", temperature=0.5, warmups=1)
    assert len(asked.bodies) == 5
    assert plain.bodies[0].keys() == {"model", "max_tokens", "temperature", "stream", "stream_options", "messages"}
    assert plain.bodies[0]["stream_options"] == {"include_usage": True}
    assert asked.bodies[0].keys() - plain.bodies[0].keys() == {"ignore_eos", "prompt"}
    assert asked.bodies[0]["temperature"] == 0.5


def test_prompts_share_a_prefix_in_a_burst_alone_and_every_fourth_is_long():
    options = LoadOptions(**{**FEW, "requests": 8, "burst": 4})
    bursts = [prompt.split() for prompt in make_prompts("burst", options)]
    assert all(words[:30] == bursts[0][:30] for words in bursts[:4])
    assert bursts[4][:30] != bursts[0][:30]
    assert len({tuple(words) for words in bursts}) == 8
    assert [len(prompt.split()) for prompt in make_prompts("long", options)] == [5, 5, 5, 60] * 2
    assert make_prompts("closed", options) == make_prompts("closed", options) != make_prompts("poisson", options)


def test_a_refused_a_broken_and_an_empty_answer_are_recorded_as_failed(tmp_path):
    _, samples = load(Fake(failing={1: (429, "try\nlater")}), tmp_path / "a", scenarios=("closed",), users=1)
    assert [sample.error for sample in samples["closed"]] == [None, "429: try later", None, None]
    _, samples = load(Fake(breaks_off=True), tmp_path / "b", scenarios=("closed",))
    assert {sample.error for sample in samples["closed"]} == {"the stream broke off"}
    _, samples = load(Fake(waits_s=()), tmp_path / "c", scenarios=("closed",))
    assert {sample.error for sample in samples["closed"]} == {"no text came"}
    _, samples = load(Fake(waits_s=(2.0,)), tmp_path / "d", scenarios=("closed",), timeout_s=0.1)
    assert {sample.error for sample in samples["closed"]} == {"timeout"}


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["load", *arguments])
    message = str(caught.value)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_what_cannot_be_used_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ENGINEWRIGHT_HOME", str(tmp_path))
    few = ["--no-tracking", "--requests", "2", "--warmups", "0", "--scenarios", "closed"]
    assert "nothing answers at http://127.0.0.1:" in refused(capsys, "--url", f"http://127.0.0.1:{free_port()}", *few)
    with running(Fake(key="right")) as fake:
        assert "refuses the API key (401)" in refused(capsys, "--url", fake.url, *few)
        monkeypatch.setenv("MY_KEY", "right")
        main(["load", "--url", fake.url, "--api-key-variable", "MY_KEY", *few])
    with running(Fake(models=("a", "b"))) as fake:
        assert "has no model 'c'; it has a, b" in refused(capsys, "--url", fake.url, "--model", "c", *few)
    with running(Fake()) as fake:
        (tmp_path / "file").write_text("")
        assert "file exists" in refused(capsys, "--url", fake.url, "--out", str(tmp_path / "file"), *few)
    with running(Fake(models=())) as fake:
        assert "lists no models" in refused(capsys, "--url", fake.url, *few)
    with running(Fake(failing={0: (500, "out of order"), 1: (500, "out of order")})) as fake:
        assert "no request was answered, most for this reason: 500: out of order" in refused(
            capsys, "--url", fake.url, *few
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "--rate is 0.0; it must be above 0"),
        ({"users": 0}, "--users is 0; it must be at least 1"),
        ({"warmups": -1}, "--warmups is -1; it must be 0 or more"),
        ({"url": "localhost:8000"}, "--url is 'localhost:8000'; it must be an http:// or https:// address"),
    ],
)
def test_options_out_of_bounds_are_named(options, message):
    with pytest.raises(EnginewrightError, match=message):
        LoadOptions(**options)


def test_a_whole_run_leaves_samples_figures_plots_and_a_run_in_mlflow(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENGINEWRIGHT_HOME", str(tmp_path))
    with running(Fake(waits_s=(0.01, 0.01))) as fake:
        main(["load", "--url", fake.url.removesuffix("/v1"), "--requests", "4", "--rate", "50", "--warmups", "1"])
    (folder,) = (tmp_path / "load").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["scenario"] for row in summary["rows"]] == ["closed", "poisson", "burst", "long"]
    assert all(row["num_requests"] == 4 and row["num_failed"] == 0 for row in summary["rows"])
    for name in ("latencies.png", "timeline.png"):
        with Image.open(folder / name) as image:
            assert image.size[0] > 1000
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("enginewright").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["burst/ttft_p50_ms"] == summary["rows"][2]["ttft_p50_ms"]
    assert run.data.params["requests"] == "4"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "samples.jsonl", "summary.json", "latencies.png", "timeline.png"
    }  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in printed if line.split()[:1] == ["burst"]] == [["burst", "4", "0"]]


def test_the_command_line_needs_no_heavy_import():
    code = (
        "import sys; from pipelines.enginewright import parser; parser(); "
        "print([name for name in ('torch', 'mlflow', 'aiohttp', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
