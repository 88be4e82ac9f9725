"""One engine through thousands of steps of a random mix with everything on: nothing leaks, and every answer is its own.

Other tests begin with an idle engine and a few requests; what a step leaves behind wrongly may show much later.
"""

import random

from runtime.pacing.costs import ChunkCosts, Line
from runtime.pacing.pace import Pace
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always, Oracle
from tests.runtime.test_engine import alone
from tests.runtime.test_prefix_reuse import check_plans, mix
from tests.runtime.tiny import make_engine

NUM_STEPS, MOST_AT_ONCE = 2500, 9
LIMITS = {"num_blocks": 20, "max_num_tokens": 18, "block_size": 4}
# In milliseconds; chunks of 4 to 10 tokens.
COSTS = ChunkCosts(8, {1: 10.0, 4: 13.0}, 0.05, (Line(1, 1.5, 0.01), Line(16, 16.5, 0.2)))


def test_thousands_of_steps_of_a_random_mix_leak_nothing_and_change_no_answer(checkpoint):
    rng = random.Random(0)
    known = mix(rng, 60, num_prefixes=6)
    answers = [alone(checkpoint, request_params[:3]) for request_params in known]
    drafter = Oracle([prompt + answer for (prompt, *_), answer in zip(known, answers, strict=True)])
    policy = Always(TreeShape(7, 2, 3), None, TreeShape(5, 1, 4))
    engine = make_engine(checkpoint, 1, 2, drafter=drafter, policy=policy, pace=Pace(COSTS, 1.5), **LIMITS)
    check_plans(engine)
    live, reasons, num_steps = {}, [], 0
    while live or num_steps < NUM_STEPS:
        if num_steps < NUM_STEPS and len(live) < MOST_AT_ONCE and rng.random() < 0.5:
            index = rng.randrange(len(known))
            live[engine.add(*known[index])] = answers[index]
        if live and rng.random() < 0.02:
            engine.finish(rng.choice(list(live)), "cancelled")
        engine.step()
        engine.scheduler.check()
        num_steps += 1
        for request in [request for request in live if request.finish_reason is not None]:
            answer = live.pop(request)
            whole = answer if request.finish_reason != "cancelled" else answer[: len(request.output_ids)]
            assert request.output_ids == whole
            reasons.append(request.finish_reason)
    while engine.has_work:  # what was in flight of cancelled requests
        engine.step()
    assert engine.scheduler.pool.num_free == engine.backend.limits.num_blocks
    assert min(reasons.count(reason) for reason in ("stop", "length", "cancelled")) > 5
    assert engine.scheduler.num_preemptions > 50
    assert engine.prefix_stats.hits > 1000
    assert engine.prefix_stats.evictions > 100
    assert engine.speculation.snapshot().num_accepted_tokens > 300
