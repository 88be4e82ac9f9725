"""A soak finds what it is there to find: wrong answers, stuck requests, unclear errors, blocks that are still held."""

import asyncio
import re
from pathlib import Path

import aiohttp
import pytest

from pipelines.soak.bundle import BLOCK_SIZE, exact_copy
from pipelines.soak.cases import Answer, Case, bad_requests, make_cases
from pipelines.soak.command import soak
from pipelines.soak.crowd import Crowd
from pipelines.soak.options import SoakOptions
from pipelines.soak.verdict import idle_failures, slope_mb_per_minute
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.formats.engine_plan import EnginePlan
from tests.pipelines.load.fake_endpoint import Fake, running
from tests.runtime.golden import make as golden

BUNDLE = Path(golden.__file__).parent / "schema-1" / "bundle"
CASE = Case("completions", "Hello", {"max_tokens": 4})
RIGHT = Answer("word word ", "length", 4)


def crowd_of(fake, acts, timeout_s=5.0):
    """Do something in a crowd against an endpoint."""

    async def do():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
            crowd = Crowd(session, fake.url, "tiny", timeout_s)
            await acts(crowd)
            return crowd

    with running(fake):
        return asyncio.run(do())


def uses(known, times=8):
    """A user who does `times` things."""

    async def act(crowd):
        turns = iter(range(times))
        await crowd.user({0: known}, [CASE], 3, lambda: next(turns, None) is not None)

    return act


def test_right_answers_are_found_right():
    async def only_finish(crowd):
        for _ in range(3):
            await crowd._finish(0, CASE, RIGHT)

    crowd = crowd_of(Fake(waits_s=(0.0, 0.0)), only_finish)
    assert crowd.failures == []
    assert crowd.counts["tokens"] == 12


@pytest.mark.parametrize(
    ("fake", "kind", "message"),
    [
        (Fake(waits_s=(0.0,)), "wrong", "'word '.* in the crowd, .*'word word '.* alone"),
        (Fake(waits_s=(5.0,)), "stuck", "timeout"),
        (Fake(breaks_off=True), "broken", "the stream broke off"),
    ],
)
def test_what_is_wrong_is_noted(fake, kind, message):
    async def finish(crowd):
        await crowd._finish(0, CASE, RIGHT)

    crowd = crowd_of(fake, finish, timeout_s=0.3)
    (failure,) = crowd.failures
    assert failure.startswith(f"{kind}: case 0: ")
    assert crowd.counts[kind] == 1
    assert re.search(message, failure)


def test_a_bad_request_that_is_taken_is_unclear():
    async def err(crowd):
        await crowd._err(bad_requests("tiny")[0])

    crowd = crowd_of(Fake(waits_s=(0.0,)), err)
    assert crowd.failures[0].startswith("unclear: ")


def test_users_do_everything_and_clients_die():
    async def everything(crowd):
        await uses(RIGHT, 30)(crowd)
        turns = iter(range(1))
        await crowd.kill_clients([CASE], 0, lambda: next(turns, None) is not None)

    crowd = crowd_of(Fake(waits_s=(0.0, 0.0)), everything)
    assert {"finish", "leave", "abort", "err", "killed"} <= crowd.counts.keys()
    assert not [failure for failure in crowd.failures if not failure.startswith("unclear")]


def test_cases_are_of_every_kind_and_the_same_again():
    cases = make_cases(96, 0)
    assert cases == make_cases(96, 0) != make_cases(96, 1)
    assert {case.api for case in cases} == {"chat", "completions"}
    assert {"top_p", "repetition_penalty", "logit_bias", "min_tokens", "stop", "response_format"} <= {
        field for case in cases for field in case.fields
    }
    assert {case.fields["temperature"] > 0 for case in cases} == {True, False}
    assert len({case.prompt[:64] for case in cases}) < 80  # some share a prefix


def test_the_exact_copy_is_a_bundle_in_float64(tmp_path):
    copy = open_bundle(exact_copy(BUNDLE, tmp_path / "copy"))
    plan = EnginePlan.read(copy.engine_dir("cpu"))
    assert (plan.dtype, plan.block_size) == ("float64", BLOCK_SIZE)
    assert plan.num_blocks * plan.block_size < plan.max_batch_size * plan.max_seq_len  # too few for all


def test_growth_is_fitted_after_the_warm_up():
    steady = [(float(second), 10**8 + 50_000 * second) for second in range(100)]
    assert slope_mb_per_minute(steady) == pytest.approx(3.0)
    warming = [(time, size + (10**9 if time < 20 else 0)) for time, size in steady]
    assert slope_mb_per_minute(warming) == pytest.approx(3.0)


def test_what_is_held_when_all_is_over_is_a_failure():
    idle = {"num_requests_running": 0.0, "num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}
    assert idle_failures(idle, 0) == []
    assert idle_failures({**idle, "kv_cache_usage_perc": 0.01}, 0) == [
        "kv_cache_usage_perc is 0.01 when all is over; it must be 0"
    ]
    assert idle_failures(idle, -9) == ["the server ended with -9, not 0"]


def test_a_bundle_that_is_none_is_refused_before_any_server_starts(tmp_path):
    with pytest.raises(EnginewrightError, match="no engine bundle here"):
        soak(SoakOptions(tmp_path / "nothing", tmp_path / "out"))


def test_options_out_of_bounds_are_named(tmp_path):
    with pytest.raises(EnginewrightError, match="--minutes is 0; it must be above 0"):
        SoakOptions(BUNDLE, tmp_path, minutes=0)
    with pytest.raises(EnginewrightError, match="--users is 0; it must be at least 1"):
        SoakOptions(BUNDLE, tmp_path, users=0)
