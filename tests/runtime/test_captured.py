"""Steps of fixed layouts say what steps of any size say: fp64, padded, launched together, read late."""

import random
from dataclasses import replace

import pytest
import torch

from runtime.backends.base import EngineLimits
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.buckets import Buckets
from runtime.backends.captured.recording import EagerRecorder
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.pacing.measuring import measure_backend
from runtime.pacing.pace import Pace
from runtime.sampling import SamplingParams
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always, Oracle
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.test_speculation import FAMILIES
from tests.runtime.tiny import EOS, PLAN, make_checkpoint


def captured(
    checkpoint, drafter=None, policy=None, read_lag=1, most_repeats=4, recorder=None, device="cpu", **limits
):  # fmt: skip
    plan = replace(PLAN, **limits)
    decoder = Decoder(checkpoint, torch.float64, "torch", plan.max_seq_len, device)
    cache = KVCache(checkpoint.spec, plan.num_blocks + 1, plan.block_size, torch.float64, device)
    cache.storage.fill_(torch.nan)
    cache.storage[:, plan.num_blocks :] = 0  # padding reads what padding wrote
    sizes = (plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size)
    backend = CapturedBackend(
        decoder, cache, EngineLimits(*sizes), recorder or EagerRecorder(), drafter, read_lag, most_repeats
    )  # fmt: skip
    return Engine(backend, frozenset([EOS]), policy)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lag", [(0, 1), (1, 4), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "limits", [{}, {"num_blocks": 24, "max_num_tokens": 20}, {"block_size": 96, "num_blocks": 4}], ids=str
)
def test_outputs_are_those_of_requests_alone(tmp_path, family, lag, limits):
    checkpoint = make_checkpoint(tmp_path, FAMILIES[family])
    rng = random.Random(5)
    wanted = [random_request(rng) for _ in range(12)]
    expected = [alone(checkpoint, one) for one in wanted]
    texts = [prompt + output for (prompt, *_), output in zip(wanted, expected, strict=True)]
    for policy in (None, Always(TreeShape(10, 3, 4), TreeShape(6, 1, 5), None)):
        engine = captured(checkpoint, Oracle(texts), policy, *lag, **limits)
        assert [request.output_ids for request in run(engine, wanted)] == expected
        engine.scheduler.check()
    assert sum(policy.emitted) > len(policy.emitted), "no draft was ever right, so nothing was tested"


def test_logprobs_are_those_of_any_other_step(tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    request = ([3, 1, 4, 1, 5], SamplingParams(max_tokens=9, ignore_eos=True, logprobs=3))
    texts = [request[0] + alone(checkpoint, request)]

    def logprobs(engine):
        engine.add(*request)
        events = [event for _ in iter(lambda: engine.has_work, False) for event in engine.step()]
        return [pytest.approx(dict(event.logprobs.top), abs=1e-12) for event in events]

    plain = logprobs(captured(checkpoint))
    drafted = logprobs(captured(checkpoint, Oracle(texts), Always(TreeShape(6, 1, 5))))
    assert len(plain) == 9
    assert [token.expected for token in plain] == drafted


def test_penalties_and_biases_are_those_of_any_other_step(tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    rules = {"repetition_penalty": 1.3, "logit_bias": {7: 3.0}, "min_tokens": 4}
    wanted = [([3, 1, 4], SamplingParams(max_tokens=12, **rules)), ([2, 7], SamplingParams(max_tokens=12))]
    expected = [alone(checkpoint, one) for one in wanted]
    texts = [prompt + output for (prompt, _), output in zip(wanted, expected, strict=True)]
    engine = captured(checkpoint, Oracle(texts), Always(TreeShape(6, 1, 5)))
    assert [request.output_ids for request in run(engine, wanted)] == expected


def test_costs_are_measured_and_chunks_go_by_them(tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    backend = captured(checkpoint).backend
    paced = Engine(backend, frozenset([EOS]), pace=Pace(measure_backend(backend), 1.5))
    rng = random.Random(3)
    wanted = [random_request(rng) for _ in range(8)]
    assert [request.output_ids for request in run(paced, wanted)] == [alone(checkpoint, one) for one in wanted]


def test_few_layouts_serve_every_step(tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    rng = random.Random(1)
    engine = captured(checkpoint, max_batch_size=8, num_blocks=200)
    run(engine, [random_request(rng) for _ in range(60)])
    layouts = [layout for layout, *_ in engine.backend._graphs]
    assert {layout.num_rows for layout in layouts if layout.one_each} <= {1, 2, 4, 8}
    assert {layout.num_tokens for layout in layouts if not layout.one_each} <= {16, 32, 64}


def test_steps_longer_than_any_text_are_refused():
    with pytest.raises(EnginewrightError, match=r"max_num_tokens is 100.*max_seq_len, 96"):
        Buckets(EngineLimits(4, 96, 100, 24, 4))
