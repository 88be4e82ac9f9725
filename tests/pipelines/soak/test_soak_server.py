"""The server of this project under load and under soak; minutes of it are for `make soak`."""

import asyncio
import json
from pathlib import Path

import pytest
from PIL import Image

from pipelines.load.command import measure
from pipelines.load.options import SCENARIOS, LoadOptions
from pipelines.soak.bundle import exact_copy
from pipelines.soak.command import soak
from pipelines.soak.options import SoakOptions
from pipelines.soak.server import running
from runtime.errors import EnginewrightError
from tests.runtime.golden import make as golden

BUNDLE = Path(golden.__file__).parent / "schema-1" / "bundle"
pytestmark = pytest.mark.slow


def test_a_short_soak_holds(tmp_path):
    report = soak(SoakOptions(BUNDLE, tmp_path, minutes=0.35, users=60, most_mb_per_minute=300.0))
    assert report["passed"]
    assert all(report["counts"][act] > 0 for act in ("finish", "leave", "abort", "err", "killed"))
    assert report["metrics"]["num_preemptions_total"] > 0
    assert report["metrics"]["spec_decode_num_accepted_tokens_total"] > 0
    assert report["metrics"]["prefix_cache_hits_total"] > 0
    assert json.loads((tmp_path / "report.json").read_text()) == report
    with Image.open(tmp_path / "memory.png") as image:
        assert image.size[0] > 1000


def test_too_much_growth_fails_a_soak_and_its_report_says_so(tmp_path):
    with pytest.raises(EnginewrightError, match=r"the soak failed: memory grew by .* at most -1000 is allowed"):
        soak(SoakOptions(BUNDLE, tmp_path, minutes=0.05, users=4, most_mb_per_minute=-1000.0))
    assert not json.loads((tmp_path / "report.json").read_text())["passed"]


def test_a_server_that_does_not_come_up_is_one_line(tmp_path):
    async def start():
        async with running(tmp_path / "nothing", tmp_path / "log", 1):
            pass

    with pytest.raises(EnginewrightError, match=r"the server did not come up: error: .*no engine bundle here"):
        asyncio.run(start())


def test_every_scenario_of_a_load_is_answered(tmp_path):
    async def load():
        async with running(exact_copy(BUNDLE, tmp_path / "bundle"), tmp_path / "log", 100) as server:
            words = {"prompt_words": 6, "prefix_words": 12, "long_words": 20}
            options = LoadOptions(url=server.url, requests=8, max_tokens=9, rate=50.0, ignore_eos=True, **words)
            return await measure(options, tmp_path)

    model, samples = asyncio.run(load())
    assert model == "golden-tiny-fp32"
    assert tuple(samples) == SCENARIOS
    for sample in (sample for each in samples.values() for sample in each):
        assert sample.error is None
        assert (sample.output_tokens, sample.has_usage, sample.finish_reason) == (9, True, "length")
