"""A stack of switches: every stage computes the same tokens, the second wave joins the first, gains multiply up."""

import random
from dataclasses import replace
from math import prod

import pytest
import torch

from runtime.backends.base import EngineLimits
from runtime.backends.captured.backend import CapturedBackend
from runtime.backends.captured.recording import EagerRecorder
from runtime.backends.torch_backend import TorchBackend
from runtime.benchmark.ladder import ladder
from runtime.benchmark.plain_decoder import PlainDecoder
from runtime.benchmark.session import in_batches, make_session, random_session, run_session
from runtime.benchmark.settings import SessionSizes
from runtime.benchmark.stack import StackSample, run_batches, run_stack, summarise_stack
from runtime.benchmark.systems import Timings
from runtime.engine import Engine
from runtime.kv.cache import KVCache
from runtime.speculation.loading import Drafting
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.policy import FixedPolicy
from runtime.speculation.tree import TreeShape
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.test_speculation import FAMILIES
from tests.runtime.tiny import EOS, PLAN, SPEC, make_checkpoint

SIZES = SessionSizes(prefix_len=20, own_len=6, new_tokens=12, wave=2)


@pytest.mark.parametrize("backend", ["launched", "captured"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_operations_say_what_the_ops_say(tmp_path, family, backend):
    checkpoint = make_checkpoint(tmp_path, FAMILIES[family])
    decoder = PlainDecoder(checkpoint, torch.float64, "torch", PLAN.max_seq_len)
    cache = KVCache(checkpoint.spec, PLAN.num_blocks + 1, PLAN.block_size, torch.float64)
    cache.storage.zero_()
    limits = EngineLimits(
        PLAN.max_batch_size, PLAN.max_seq_len, PLAN.max_num_tokens, PLAN.num_blocks, PLAN.block_size
    )  # fmt: skip
    if backend == "captured":
        made = CapturedBackend(decoder, cache, limits, EagerRecorder(), most_repeats=4)
    else:
        made = TorchBackend(decoder, cache, limits)
    rng = random.Random(3)
    wanted = [random_request(rng) for _ in range(10)]
    expected = [alone(checkpoint, one) for one in wanted]
    assert [request.output_ids for request in run(Engine(made, frozenset([EOS])), wanted)] == expected


def test_a_session_is_two_waves_over_one_prefix():
    session = make_session([1, 2, 3], [[7] * 9, [8, 9]], replace(SIZES, prefix_len=5))
    assert session.first.prompts == [[1, 2, 3, 1, 2] + [7] * 6, [1, 2, 3, 1, 2, 8, 9]] == session.second.prompts
    assert session.arrival == 3
    assert session.alone.prompts == session.first.prompts[:1]
    prompts = [*random_session(100, SIZES).first.prompts, *random_session(100, SIZES).second.prompts]
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 4
    assert SIZES.fitted(30).prefix_len == 12


def test_the_second_wave_joins_while_the_first_decodes(checkpoint):
    session = random_session(SPEC.vocab_size, SIZES)
    (stage, *_) = ladder(checkpoint, PLAN, SIZES)
    engine = stage.load()
    times = run_session(engine, session)
    assert not engine.has_work
    assert len(times.ttft_s) == 4
    assert len(times.pauses_s) == 4 * (SIZES.new_tokens - 1)
    assert max(times.ttft_s) < times.total_s < sum(times.ttft_s) + sum(times.pauses_s)


def test_a_batch_that_cannot_be_joined_makes_the_second_wave_wait():
    first, second = Timings(1.0, [0.1, 0.2, 0.3], 8), Timings(2.0, [0.4], 4)
    times = in_batches(first, second, arrival=2)
    assert times.total_s == pytest.approx(4.0)
    assert times.ttft_s == pytest.approx([1.0, 0.5 + 2.0])
    assert times.pauses_s == [0.1, 0.2, 0.3, 0.4]


def test_every_stage_of_the_cpu_emits_the_same_tokens(checkpoint):
    drafting = Drafting(NgramDrafter(), FixedPolicy(TreeShape(4, 1, 3)))
    stages = ladder(checkpoint, PLAN, SIZES, lambda backend: drafting)
    assert [stage.name for stage in stages] == ["eager", "fused ops", "chunked prefill", "prefix reuse", "speculation"]
    outputs, hits, drafted = [], [], []
    for stage in stages:
        engine = stage.load()
        wanted = [random_request(random.Random(seed)) for seed in (1, 1, 1, 1, 1, 2)]  # more than run at once
        outputs.append([request.output_ids for request in run(engine, wanted)])
        hits.append(engine.prefix_stats.hits > 0)
        drafted.append(engine.speculation.snapshot().num_drafts > 0)
    assert outputs == outputs[:1] * len(stages)
    assert hits == [False, False, False, True, True]
    assert drafted == [False, False, False, False, True]


def test_samples_name_their_stage_and_gains_multiply_up_to_the_whole(checkpoint):
    class Batches:
        def run(self, workload):
            return Timings(0.5, [0.1] * (SIZES.new_tokens - 1), sum(workload.new_tokens))

    session = random_session(SPEC.vocab_size, SIZES)
    samples = list(run_batches("naive", Batches(), session, 2))
    samples += run_stack(ladder(checkpoint, PLAN, SIZES), session, 2, lambda share, text: None)
    names = ["naive", "eager", "fused ops", "chunked prefill", "prefix reuse"]
    assert [(sample.stage, sample.repeat) for sample in samples] == [(name, n) for name in names for n in range(2)]
    assert {sample.num_tokens for sample in samples} == {4 * SIZES.new_tokens}
    assert samples[0].alone_token_s == pytest.approx(0.1)
    rows = summarise_stack(samples)
    assert [row.stage for row in rows] == names
    assert prod(row.gain for row in rows) == pytest.approx(rows[0].total_s / rows[-1].total_s)


def test_rows_are_medians():
    def sample(stage, total_s, token_s):
        return StackSample(stage, 0, 4, total_s, [0.001, 0.003], [0.01] * 99 + [1.0], 0.002, token_s)

    (row, last) = summarise_stack([sample("a", 4.0, 0.5), sample("a", 2.0, 0.25), sample("b", 1.0, 0.1)])
    assert (row.total_s, row.ttft_ms, row.pause_ms, row.alone_ttft_ms) == pytest.approx((3.0, 2.0, 10.0, 2.0))
    assert (row.gain, last.gain) == pytest.approx((1.0, 3.0))
    assert last.alone_tokens_per_s == pytest.approx(10.0)
