"""Engines over ONNX Runtime say what they say alone, without drafts and without reuse, token for token in float64."""

import random
from dataclasses import replace

import pytest
import torch

from runtime.backends.base import EngineLimits
from runtime.backends.slots.backend import OnnxBackend, cache_len_for
from runtime.backends.slots.cache import SlotCache
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import EMBEDDING
from runtime.kv.cache import KVCache
from runtime.kv.prefix_cache import common_len
from runtime.model.decoder import Decoder
from runtime.pacing.measuring import measure_backend
from runtime.pacing.pace import Pace
from runtime.sampling import SamplingParams
from runtime.scoring import score
from runtime.speculation.combined import CombinedDrafter
from runtime.speculation.draft_model import ModelDrafter
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.redrafter.loading import make_redrafter
from runtime.speculation.tree import TreeShape
from tests.pipelines.onnx_models import onnx_session
from tests.runtime.drafting import Always, Oracle
from tests.runtime.heads import head_config, head_tensors
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.test_prefix_reuse import mix
from tests.runtime.test_speculation import FAMILIES, outputs
from tests.runtime.tiny import EOS, SPEC, make_checkpoint

MAX_SEQ_LEN = 96
LIMITS = EngineLimits(4, MAX_SEQ_LEN, 64, num_blocks=6, block_size=cache_len_for(MAX_SEQ_LEN))
SHAPES = [TreeShape(6, 2, 3), TreeShape(12, 4, 5)]
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def session(checkpoint, tmp_path_factory):
    """One session over the tiny model, in float64: a backend has no other state than its cache."""
    return onnx_session(checkpoint, tmp_path_factory.mktemp("graph"), "float64", LIMITS.block_size)


def make_engine(session, *, drafter=None, policy=None, prefix_reuse=True, **limits):
    backend = OnnxBackend(session, replace(LIMITS, **limits), drafter)
    return Engine(backend, frozenset([EOS]), policy, prefix_reuse)


def texts_of(wanted, expected):
    return [prompt + output for (prompt, *_), output in zip(wanted, expected, strict=True)]


def model_drafter(checkpoint):
    decoder = Decoder(checkpoint, torch.float64, "torch", MAX_SEQ_LEN)
    cache = KVCache(checkpoint.spec, LIMITS.num_blocks, LIMITS.block_size, torch.float64)
    return ModelDrafter(decoder, cache, SPEC.vocab_size)


def test_costs_are_measured_and_chunks_go_by_them(session, checkpoint):
    engine = make_engine(session)
    costs = measure_backend(engine.backend)
    assert [line.num_tokens for line in costs.chunks] == [1, 4, 16]
    rng = random.Random(5)
    wanted = [random_request(rng) for _ in range(6)]
    paced = Engine(engine.backend, frozenset([EOS]), pace=Pace(costs, 1.5))
    assert outputs(run(paced, wanted)) == [alone(checkpoint, one) for one in wanted]


@pytest.mark.parametrize("limits", [{}, {"max_num_tokens": 5}, {"num_blocks": 4}], ids=["roomy", "chunks", "no spare"])
@pytest.mark.parametrize("prefix_reuse", [True, False])
def test_batch_chunks_and_moves_between_slots_change_nothing(checkpoint, session, limits, prefix_reuse):
    rng = random.Random(7)
    wanted = [random_request(rng) for _ in range(14)]
    engine = make_engine(session, prefix_reuse=prefix_reuse, **limits)
    assert outputs(run(engine, wanted)) == [alone(checkpoint, one) for one in wanted]
    assert engine.backend.cache.num_moves > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_it_says_without_drafts(tmp_path, family):
    checkpoint = make_checkpoint(tmp_path, FAMILIES[family])
    session = onnx_session(checkpoint, tmp_path, "float64", LIMITS.block_size)
    rng = random.Random(3)
    wanted = [random_request(rng) for _ in range(6)]
    expected = outputs(run(make_engine(session), wanted))
    assert expected == [alone(checkpoint, one) for one in wanted], "it differs from our decoder, plainly decoded"
    policy = Always(*SHAPES, None)
    drafted = make_engine(session, drafter=Oracle(texts_of(wanted, expected)), policy=policy)
    assert outputs(run(drafted, wanted)) == expected
    assert sum(policy.emitted) > 1.5 * len(policy.emitted), "the drafts were never right, so nothing was tested"


def drafter_of(kind, checkpoint):
    if kind == "redrafter":
        embedding = dict(checkpoint.tensors())[EMBEDDING].double()
        return make_redrafter(head_config(), head_tensors(head_config()), embedding, embedding, "torch")
    model = model_drafter(checkpoint)
    return {"ngram": NgramDrafter(), "model": model, "both": CombinedDrafter(model, NgramDrafter())}[kind]


@pytest.mark.parametrize("kind", ["ngram", "model", "redrafter", "both"])
def test_every_drafter_changes_nothing_greedy_or_sampled(checkpoint, session, kind):
    rng = random.Random(4)
    wanted = [(request[0] * 3, *request[1:]) for request in (random_request(rng, longest_prompt=9) for _ in range(8))]
    assert {request[1].temperature > 0 for request in wanted} == {True, False}
    engine = make_engine(session, drafter=drafter_of(kind, checkpoint), policy=Always(*SHAPES))
    assert outputs(run(engine, wanted)) == [alone(checkpoint, one) for one in wanted]
    counts = engine.speculation.snapshot()
    assert counts.num_draft_tokens > 0
    assert kind in ("redrafter", "ngram") or counts.num_accepted_tokens > 0  # which here are right by chance alone


@pytest.mark.parametrize("seed", range(12))
def test_output_does_not_depend_on_what_slots_held_before(checkpoint, session, seed):
    """Random mixes over few prefixes and two tenants, drafts in every second, cancellation in every third."""
    rng = random.Random(seed)
    wanted = mix(rng, 14)
    expected = [alone(checkpoint, one[:3]) for one in wanted]
    drafting = {"drafter": Oracle(texts_of(wanted, expected)), "policy": Always(SHAPES[0], None)} if seed % 2 else {}
    limits = {"num_blocks": rng.choice([4, 6, 12]), "max_num_tokens": rng.choice([4, 7, 16, 64])}
    engine = make_engine(session, **drafting, **limits)
    cancel_at = rng.randrange(40) if seed % 3 == 0 else None
    for request, output in zip(run(engine, wanted, cancel_at=cancel_at, rng=rng), expected, strict=True):
        cancelled = request.finish_reason == "cancelled"
        assert request.output_ids == (output[: len(request.output_ids)] if cancelled else output)
    assert engine.prefix_stats.hits > 0


def test_a_second_turn_copies_the_slot_of_the_first(session):
    engine = make_engine(session)
    first = run(engine, [([5, 99, 3, 42, 17], GREEDY)])[0]
    prompt = [5, 99, 3, 42, 17, *first.output_ids, 8, 9]
    second = run(engine, [(prompt, GREEDY)])[0]
    assert engine.prefix_stats.hits == len(prompt) - 3, "all but the last output, which was never computed, and 8, 9"
    assert second.output_ids == run(make_engine(session, prefix_reuse=False), [(prompt, GREEDY)])[0].output_ids


def test_samples_of_one_prompt_compute_it_once(session):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=8, ignore_eos=True)
    wanted = [([1, 2, 3, 4, 5, 6, 7], params, index) for index in range(3)]
    engine = make_engine(session)
    requests = [engine.add(*one) for one in wanted]
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
    assert engine.prefix_stats.hits == 2 * 6
    assert outputs(requests) == [run(make_engine(session), [one])[0].output_ids for one in wanted]


@pytest.mark.parametrize("seed", range(4))
def test_cancelling_amid_drafts_frees_slots_and_leaves_others_alone(checkpoint, session, seed):
    rng = random.Random(seed)
    wanted = [random_request(rng) for _ in range(6)]
    expected = [alone(checkpoint, one) for one in wanted]
    engine = make_engine(session, drafter=Oracle(texts_of(wanted, expected)), policy=Always(SHAPES[1]))
    for request, output in zip(run(engine, wanted, cancel_at=rng.randrange(8), rng=rng), expected, strict=True):
        cancelled = request.finish_reason == "cancelled"
        assert request.output_ids == (output[: len(request.output_ids)] if cancelled else output)


def test_to_the_last_token_of_the_context(checkpoint, session):
    wanted = [([1] * 80, SamplingParams(max_tokens=None, ignore_eos=True)), ([2] * 95, SamplingParams(max_tokens=None))]
    expected = [alone(checkpoint, one) for one in wanted]
    policy = Always(TreeShape(16, 1, 15))
    engine = make_engine(session, drafter=Oracle(texts_of(wanted, expected), 1.0), policy=policy)
    assert outputs(run(engine, wanted)) == expected
    assert [len(output) for output in expected] == [16, 1]


def test_in_float32_drafted_tokens_differ_only_at_near_ties(checkpoint, tmp_path):
    """The rule for float32: where an output differs first, rounding can turn the two tokens' order.

    Rounding: the largest difference between the logits of one pass over a text and of passes over single tokens.
    """
    session = onnx_session(checkpoint, tmp_path, "float32", LIMITS.block_size)
    rng = random.Random(9)
    wanted = [([rng.randrange(256) for _ in range(12)], GREEDY) for _ in range(8)]
    plain = outputs(run(make_engine(session), wanted))
    policy = Always(SHAPES[1])
    drafted = make_engine(session, drafter=Oracle(texts_of(wanted, plain)), policy=policy)
    drafted_outputs = outputs(run(drafted, wanted))
    assert sum(policy.emitted) > len(policy.emitted)
    for (prompt, _), output, other in zip(wanted, plain, drafted_outputs, strict=True):
        text, alternative = prompt + output, prompt + other
        at = common_len(text, alternative)
        whole, single = (score(make_engine(session, max_num_tokens=rows), text) for rows in (64, 1))
        rounding = float((whole - single).abs().max())
        assert rounding < 1e-4
        if at < len(text):
            margin = float(whole[at - 1, text[at]] - whole[at - 1, alternative[at]])
            assert margin <= 2 * rounding


def test_a_graph_for_other_limits_is_refused(session):
    for limits, message in (
        ({"block_size": 256}, "block_size is 256, its graph has caches of 192 rows"),
        ({"max_seq_len": 129}, "max_seq_len is 129; its graph has caches of 192 rows, which hold 128 tokens"),
    ):
        with pytest.raises(EnginewrightError, match=message):
            make_engine(session, **limits)


def test_gathering_moves_no_more_than_it_must_and_loses_nothing():
    cache = SlotCache(replace(SPEC, num_layers=1), 6, 4, torch.float64)
    for block in range(6):
        cache.storage[:, block] = float(block)
        cache.note_written(block, 0, 4)
    cache.gather([4, 1, 5])
    assert cache.num_moves == 2
    assert {cache.slot(block) for block in (4, 1, 5)} == {0, 1, 2}
    assert cache.slot(1) == 1, "it was among the first already"
    cache.gather([5, 4, 1])
    assert cache.num_moves == 2
    for block in range(6):
        assert (cache.storage[:, cache.slot(block)] == float(block)).all()
        assert (cache.layers[0][0][cache.slots(torch.tensor([block]))] == float(block)).all()
