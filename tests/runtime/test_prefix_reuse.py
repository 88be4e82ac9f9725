"""Prefix reuse through the engine: outputs are those of a request alone, and shared tokens are computed once."""

import random

import pytest

from runtime.kv.prefix_cache import PrefixStats
from runtime.pacing.costs import ChunkCosts, Line
from runtime.pacing.pace import Pace
from runtime.sampling import SamplingParams
from runtime.scoring import score
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always, Oracle
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.test_speculation_drafters import model_drafter
from tests.runtime.tiny import make_engine

GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)
SHAPE = TreeShape(7, 2, 3)
COSTS = ChunkCosts(8, {1: 10.0, 4: 13.0}, 0.05, (Line(1, 1.5, 0.01), Line(16, 16.5, 0.2)))  # chunks of 3 to 5 tokens
PREFIX = [random.Random(1).randrange(256) for _ in range(64)]


def computed_tokens(engine):
    """Count the tokens that the target computes from now on, step by step."""
    counts, step = [], engine.backend.step

    def counted(plan, state):
        counts.append(sum(row.num_tokens for row in plan.rows))
        return step(plan, state)

    engine.backend.step = counted
    return counts


def check_plans(engine):
    """Assert of every plan that no block has two writers, and that copies are as `kv_copy_blocks` wants them."""
    block_size, step = engine.backend.limits.block_size, engine.backend.step

    def checked(plan, state):
        written = [
            block
            for row in plan.rows
            for block in row.blocks[row.start // block_size :][
                : -(-(row.start % block_size + row.num_tokens) // block_size)
            ]
            if row.token_ids is not None  # where decoding writes, the device alone knows
        ]
        sources, targets = {src for src, _ in plan.copies}, [dst for _, dst in plan.copies]
        assert len(written) == len(set(written))
        assert len(targets) == len(set(targets))
        assert not sources & set(targets)
        assert set(targets) <= set(written)
        return step(plan, state)

    engine.backend.step = checked


def mix(rng, num_requests, num_prefixes=3):
    """Requests over few prefixes: cut anywhere, followed by own tokens, sampled n times, of two tenants."""
    prefixes = [[rng.randrange(256) for _ in range(rng.randint(5, 40))] for _ in range(num_prefixes)]
    wanted = []
    while len(wanted) < num_requests:
        prompt, params, _ = random_request(rng, longest_prompt=12)
        prefix = rng.choice(prefixes)
        prompt = prefix[: rng.randint(1, len(prefix))] + prompt[: rng.randint(0, len(prompt))]
        salt = rng.choice(["", "", "tenant"])
        wanted += [(prompt, params, index, salt) for index in range(rng.choice([1, 1, 2, 4]))]
    return wanted[:num_requests]


@pytest.mark.parametrize("seed", range(30))
def test_output_does_not_depend_on_reuse(checkpoint, seed):
    """Random mixes, integrity checked at every step.

    Drafts in every second one, cancellation in every third, chunks by their time in every fourth.
    """
    rng = random.Random(seed)
    wanted = mix(rng, 16)
    expected = [alone(checkpoint, request_params[:3]) for request_params in wanted]
    texts = [prompt + output for (prompt, *_), output in zip(wanted, expected, strict=True)]
    speculation = {"drafter": Oracle(texts), "policy": Always(SHAPE, None, SHAPE)} if seed % 2 else {}
    limits = {
        "num_blocks": rng.choice([18, 24, 40, 96]),
        "max_num_tokens": rng.choice([4, 7, 16, 64]),
        "max_batch_size": rng.choice([2, 4]),
        "block_size": rng.choice([4, 4, 8, 1]),
    }
    if limits["block_size"] == 1:
        limits["num_blocks"] = 96
    pace = Pace(COSTS, 1.5) if seed % 4 == 0 else None
    engine = make_engine(checkpoint, rng.randrange(3), **speculation, pace=pace, **limits)
    check_plans(engine)
    cancel_at = rng.randrange(40) if seed % 3 == 0 else None
    requests = run(engine, wanted, cancel_at=cancel_at, rng=rng)
    for request, output in zip(requests, expected, strict=True):
        cancelled = request.finish_reason == "cancelled"
        assert request.output_ids == (output[: len(request.output_ids)] if cancelled else output)
    assert engine.prefix_stats.hits > 0


def test_a_burst_over_one_prefix_computes_it_once(checkpoint):
    """64 shared tokens and 5 own ones each, in steps of 64: the others read blocks while the first is in prefill."""
    engine = make_engine(checkpoint, max_num_tokens=64, max_batch_size=8, num_blocks=192)
    prompts = [[*PREFIX, index, 2, 3, 4, 5] for index in range(8)]
    counts = computed_tokens(engine)
    requests = [engine.add(prompt, GREEDY) for prompt in prompts]
    engine.step()
    assert counts == [64]
    engine.step()  # the first one's own tokens, and those of the seven others
    assert counts == [64, 8 * 5]
    assert all(len(request.output_ids) == 1 for request in requests)
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
    assert [request.output_ids for request in requests] == [alone(checkpoint, (p, GREEDY, 0)) for p in prompts]
    assert (engine.prefix_stats.queries, engine.prefix_stats.hits) == (8 * 69, 7 * 64)


def test_the_burst_waits_for_no_step_when_the_first_finishes_its_prefill_in_it(checkpoint):
    """Chunks of 24 of a 40-token prefix: in the second step the first ends, and the rest of the budget is theirs."""
    engine = make_engine(checkpoint, max_num_tokens=24)
    counts = computed_tokens(engine)
    for index in range(3):
        engine.add([*PREFIX[:40], index], GREEDY)
    engine.step()
    engine.step()
    assert counts == [24, 17 + 1 + 1]


def test_the_worked_example(checkpoint):
    """docs/kv-cache.md: blocks of 4 tokens, a pool of 8; A, B and C arrive together."""
    engine = make_engine(checkpoint, num_blocks=8, block_size=4)
    plans, step = [], engine.backend.step
    engine.backend.step = lambda plan, state: (plans.append(plan), step(plan, state))[1]
    a_ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    three = SamplingParams(max_tokens=3, ignore_eos=True)
    a, b, c = (engine.add(ids, three) for ids in (a_ids, [*a_ids[:8], 20, 21], a_ids))

    engine.step()  # A computes its prompt; B shares blocks 0 and 1; C waits for A's block 2
    assert [(row.blocks, row.start, row.num_tokens) for row in plans[0].rows] == [([0, 1, 2], 0, 10), ([0, 1, 3], 8, 2)]
    engine.step()  # C has a copy of A's block 2 and computes its last token
    assert plans[1].copies == [(2, 4)]
    assert [(row.blocks, row.start, row.num_tokens) for row in plans[1].rows][2] == ([0, 1, 4], 9, 1)
    engine.step()  # A and B have 12 tokens computed: their third blocks are full, and kept when they end
    assert (a.finish_reason, b.finish_reason, c.finish_reason) == ("length", "length", None)
    assert engine.scheduler.pool.cached_blocks() == [2, 3]
    engine.step()  # C has said the same as A, so that its block 4 is free, and block 2 stands for both
    assert c.output_ids == a.output_ids
    assert engine.scheduler.pool.cached_blocks() == [3, 2, 1, 0]

    second = engine.add([*a_ids, *a.output_ids, 30], three)  # A's second turn: 12 of 14 tokens are there
    engine.step()
    assert [(row.blocks[:3], row.start, row.num_tokens) for row in plans[-1].rows] == [([0, 1, 2], 12, 2)]
    while engine.has_work:
        engine.step()
    cached = engine.scheduler.pool.cached_blocks()
    assert cached[0] == 3, "B's leaf was used longest ago"
    assert cached[-3:] == [2, 1, 0]
    assert engine.prefix_stats == PrefixStats(queries=44, hits=8 + 9 + 12, evictions=0, cached_blocks=len(cached))
    run(engine, [([200 + token for token in range(20)], SamplingParams(max_tokens=1))])
    assert engine.scheduler.prefixes.cache.match(second.chain[1:]) == [0, 1, 2], "leaves made room"
    assert engine.prefix_stats.evictions > 0


def test_the_cache_of_a_draft_model_is_shared_and_copied_too(checkpoint):
    """The target as its own draft model is always right, but only where it has seen the tokens before."""
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=26, ignore_eos=True)
    engine = make_engine(checkpoint, drafter=model_drafter(checkpoint), policy=Always(TreeShape(5, 1, 4)))
    engine.backend.drafter.caches[0].storage.fill_(1e3)  # what is not copied shows
    requests = run(engine, [(PREFIX[:30], params, index) for index in range(4)])
    assert engine.prefix_stats.hits == 3 * 29
    assert [request.statistics.snapshot().num_steps for request in requests] == [5] * 4


@pytest.mark.parametrize("prompt_len", [1, 2, 30, 32, 33], ids="prompt of {}".format)
def test_samples_of_one_prompt_compute_it_once(checkpoint, prompt_len):
    engine = make_engine(checkpoint)
    counts = computed_tokens(engine)
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=6, ignore_eos=True)
    wanted = [(PREFIX[:prompt_len], params, index) for index in range(4)]
    requests = [engine.add(*request_params) for request_params in wanted]
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
    decoded = 4 * (params.max_tokens - 1)
    assert sum(counts) == prompt_len + 3 + decoded  # each of the others computes the last token of the prompt again
    assert [request.output_ids for request in requests] == [alone(checkpoint, one) for one in wanted]


def test_a_second_turn_hits_the_first_ones_prompt_and_answer(checkpoint):
    engine = make_engine(checkpoint)
    (first,) = run(engine, [(PREFIX[:30], SamplingParams(max_tokens=12, ignore_eos=True))])
    history = PREFIX[:30] + first.output_ids  # 42 tokens, of which 41 were computed: 10 full blocks of 4
    counts = computed_tokens(engine)
    (second,) = run(engine, [([*history, 7, 8], GREEDY)])
    assert counts[0] == 44 - 40
    assert second.output_ids == alone(checkpoint, ([*history, 7, 8], GREEDY, 0))


def test_a_full_hit_computes_the_last_token_again(checkpoint):
    engine = make_engine(checkpoint)
    (first,) = run(engine, [(PREFIX[:32], GREEDY)])
    counts = computed_tokens(engine)
    (again,) = run(engine, [(PREFIX[:32], GREEDY)])
    assert counts == [1] * 4
    assert again.output_ids == first.output_ids


def test_a_copy_does_not_take_the_last_block(checkpoint):
    """Of 3 blocks, a cached one is shared; the other cached one is needed, so that nothing can be copied from it."""
    engine = make_engine(checkpoint, num_blocks=3, block_size=4)
    run(engine, [(PREFIX[:9], SamplingParams(max_tokens=1))])
    counts = computed_tokens(engine)
    wanted = ([*PREFIX[:6], 1, 2, 3, 4, 5], SamplingParams(max_tokens=1, ignore_eos=True), 0)
    (request,) = run(engine, [wanted])
    assert counts == [11 - 4]
    assert request.output_ids == alone(checkpoint, wanted)


def test_a_source_is_held_until_its_copies_are_planned(checkpoint):
    """Of 4 blocks 0 and 1 are cached. The first request copies from 1; the second would evict it to copy over it."""
    engine = make_engine(checkpoint, num_blocks=4, block_size=4)
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    run(engine, [(PREFIX[:9], params)])
    check_plans(engine)
    wanted = [([*PREFIX[:6], 1, 2, 3], params, 0), ([*PREFIX[:3], 1], params, 0)]
    requests = [engine.add(*one) for one in wanted]
    engine.step()
    assert [len(request.output_ids) for request in requests] == [1, 0]
    engine.step()
    assert [request.output_ids for request in requests] == [alone(checkpoint, one) for one in wanted]


def test_tenants_share_nothing(checkpoint):
    engine = make_engine(checkpoint)
    counts = computed_tokens(engine)
    run(engine, [(PREFIX, GREEDY, 0, "one"), (PREFIX, GREEDY, 0, "two"), (PREFIX, GREEDY, 0, "")])
    assert engine.prefix_stats.hits == 0
    assert sum(counts) == 3 * (64 + 3)


def test_without_reuse_everything_is_computed(checkpoint):
    engine = make_engine(checkpoint, prefix_reuse=False)
    counts = computed_tokens(engine)
    run(engine, [(PREFIX, GREEDY)] * 3)
    assert sum(counts) == 3 * (64 + 3)
    assert engine.prefix_stats.queries == engine.prefix_stats.cached_blocks == 0


def test_a_preempted_request_finds_its_blocks_again(checkpoint):
    rng = random.Random(7)
    wanted = [random_request(rng) for _ in range(14)]
    totals = {}
    for prefix_reuse in (True, False):
        engine = make_engine(checkpoint, num_blocks=18, prefix_reuse=prefix_reuse)
        counts = computed_tokens(engine)
        requests = run(engine, wanted)
        assert sum(request.num_preemptions for request in requests) > 0
        totals[prefix_reuse] = sum(counts)
    assert totals[True] < totals[False]


def test_scoring_takes_cached_blocks_and_leaves_nothing_behind(checkpoint):
    engine = make_engine(checkpoint, num_blocks=24)
    (request,) = run(engine, [(PREFIX, GREEDY)])
    logits = score(engine, PREFIX + request.output_ids, first=63)
    assert logits[:-1].argmax(dim=-1).tolist() == request.output_ids
    assert engine.prefix_stats.evictions > 0
    engine.scheduler.check()
    run(engine, [(PREFIX, GREEDY)])


def test_forgotten_prefixes_are_computed_again(checkpoint):
    engine = make_engine(checkpoint)
    run(engine, [(PREFIX, GREEDY)])
    engine.forget_prefixes()
    assert engine.prefix_stats.cached_blocks == 0
    counts = computed_tokens(engine)
    run(engine, [(PREFIX, GREEDY)])
    assert counts[0] == 64


def test_a_step_that_fails_leaves_nothing_to_be_reused(checkpoint):
    """Ctrl-C in the middle of a pass: what it had planned to write is not in the cache, whoever goes on."""
    engine = make_engine(checkpoint, max_num_tokens=24)
    counts = computed_tokens(engine)
    request, step = engine.add(PREFIX, GREEDY), engine.backend.step

    def interrupted(*_):
        raise KeyboardInterrupt

    engine.step()
    engine.backend.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.scheduler.check()
    assert engine.prefix_stats.cached_blocks == 0
    engine.backend.step = step
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
    assert request.output_ids == alone(checkpoint, (PREFIX, GREEDY, 0))
    assert sum(counts) == 24 + 64 + 3
