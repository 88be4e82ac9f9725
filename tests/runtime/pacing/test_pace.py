"""The rule that sizes chunks, on costs made up for it, and the engine that goes by it."""

import random

import pytest

from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.loading import make_backend
from runtime.pacing.costs import ChunkCosts, Line
from runtime.pacing.pace import LEAST_SPEED, Pace, longest_within, parse_ratio, seconds_of
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.tiny import EOS, PLAN

# Milliseconds: docs/pacing.md. A step of four decodes over 256 keys each takes 20, a chunk's fixed cost is 2 and a
# token costs 1 at the beginning of a prompt, 2 behind 1000 tokens.
COSTS = ChunkCosts(256, {1: 17.0, 4: 20.0, 16: 32.0}, 0.01, tuple(Line(n, 2.0 + n, 0.001 * n) for n in (1, 8, 64, 512)))


def test_the_worked_example():
    """docs/pacing.md: ratio 1.5, four decodes over 256 keys each."""
    pace = Pace(COSTS, 1.5)
    decoding = [256] * 4
    assert COSTS.decode_step(4, 1024) == 20.0
    assert pace.most_tokens(decoding, [], start=0) == 8  # 10 ms are left: 2 + 8 * 1
    assert pace.most_tokens(decoding, [], start=1000) == 4  # 2 + 4 * 2
    assert pace.most_tokens([1256] * 4, [], start=1000) == 14  # the decodes take 60: 2 + 14 * 2
    assert pace.most_tokens(decoding, [(5, 0)], start=0) == 1  # 3 of the 10 are left beside a chunk of 5
    assert pace.most_tokens(decoding, [(8, 0)], start=0) == 0


def test_no_ratio_starves_a_prompt():
    """A chunk of n costs 2 + n; of the longest, 514 for 512, a token costs 1.004. One token alone costs 3."""
    assert Pace(COSTS, 1.0001).most_tokens([256], [], start=0) == 1
    dear = ChunkCosts(256, {1: 17.0}, 0.0, tuple(Line(n, 20.0 + n, 0.0) for n in (1, 8, 64, 512)))
    fewest = Pace(dear, 1.0001).most_tokens([256], [], start=0)
    each_at_full_speed = (20 + 512) / 512
    assert (20 + fewest) / fewest <= each_at_full_speed / LEAST_SPEED < (20 + fewest - 1) / (fewest - 1)
    assert Pace(dear, 1.0001).most_tokens([256], [(1, 0)], start=0) == 0


@pytest.mark.parametrize("seed", range(20))
def test_as_many_tokens_as_fit_and_not_one_more(seed):
    rng = random.Random(seed)
    counts = sorted(rng.sample(range(1, 2000), 6))
    points = list(zip(counts, sorted(rng.uniform(0.1, 50) for _ in counts), strict=True))
    for _ in range(50):
        seconds = rng.uniform(0, 80)
        most = longest_within(points, seconds)
        if most:
            assert seconds_of(points, most) <= seconds * (1 + 1e-9)
        if most == 0:
            assert points[0][1] > seconds
        elif most < counts[-1]:
            assert seconds_of(points, most + 1) > seconds
        else:
            assert most == counts[-1], "no more than were ever timed"


@pytest.mark.parametrize(("text", "device", "ratio"), [
    ("auto", "cpu", 8.0), ("auto", "cuda", None), ("off", "cpu", None), ("1.5", "cuda", 1.5), ("20", "cpu", 20.0),
])  # fmt: skip
def test_ratios_are_parsed(text, device, ratio):
    assert parse_ratio(text, device) == ratio


@pytest.mark.parametrize("text", ["1", "0.5", "-2", "nan", "inf", "fast", ""])
def test_other_ratios_are_refused(text):
    with pytest.raises(EnginewrightError, match=f"itl_ratio='{text}' is not auto, off or a number above 1"):
        parse_ratio(text, "cpu")


@pytest.mark.parametrize("ratio", [1.01, 1.5, 3.0])
def test_prompts_keep_to_their_time_while_others_decode_and_outputs_stay_the_same(checkpoint, ratio):
    costs = ChunkCosts(8, {1: 10.0, 4: 13.0}, 0.05, tuple(Line(n, 0.5 + n, 0.01 * n) for n in (1, 4, 16)))
    rng = random.Random(7)
    wanted = [random_request(rng) for _ in range(14)]
    engine = Engine(make_backend(checkpoint, PLAN), frozenset([EOS]), pace=Pace(costs, ratio))
    schedule, spent, unpaced = engine.scheduler.schedule, [], 0

    def watched(*asked):
        nonlocal unpaced
        planned = schedule(*asked)
        rows = planned.plan.rows
        keys = [row.start + row.num_tokens for row in rows if row.token_ids is None]
        chunks = [row for row in rows if row.token_ids is not None]
        if keys and chunks:
            seconds = sum(seconds_of(costs.chunk_points(row.start), row.num_tokens) for row in chunks)
            spent.append(seconds / costs.decode_step(len(keys), sum(keys)))
            assert spent[-1] <= ratio - 1 or [row.num_tokens for row in chunks] == [1]
        unpaced = max(unpaced, 0 if keys else sum(row.num_tokens for row in chunks))
        return planned

    engine.scheduler.schedule = watched
    assert [request.output_ids for request in run(engine, wanted)] == [alone(checkpoint, one) for one in wanted]
    assert max(spent) > 0.6 * (ratio - 1), "nothing was held back"
    assert unpaced > 16, "prompts that nobody decodes beside take the whole step"
