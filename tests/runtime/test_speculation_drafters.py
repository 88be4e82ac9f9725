"""Each real drafter through the engine on fp64 models: lossless, and as good as it must be where that is known."""

import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.formats.checkpoint import EMBEDDING
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.sampling import SamplingParams
from runtime.scoring import score
from runtime.speculation.candidates import Candidates, pack
from runtime.speculation.combined import CombinedDrafter
from runtime.speculation.draft_model import ModelDrafter
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.redrafter.loading import make_redrafter
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always
from tests.runtime.heads import head_config, head_tensors
from tests.runtime.test_engine import alone, random_request, run
from tests.runtime.test_speculation import FAMILIES, outputs
from tests.runtime.tiny import PLAN, SPEC, make_checkpoint, make_engine


def model_drafter(checkpoint, vocab_size=260, **limits):
    plan = replace(PLAN, **limits)
    decoder = Decoder(checkpoint, torch.float64, "torch", plan.max_seq_len)
    return ModelDrafter(decoder, KVCache(checkpoint.spec, plan.num_blocks, plan.block_size, torch.float64), vocab_size)


def random_head(checkpoint):
    config = head_config()
    embedding = dict(checkpoint.tensors())[EMBEDDING].double()
    return make_redrafter(config, head_tensors(config), embedding, embedding, "torch")


@pytest.mark.parametrize("limits", [{}, {"num_blocks": 24, "max_num_tokens": 20}], ids=["roomy", "cramped"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_model_of_another_kind_changes_nothing(tmp_path, family, limits):
    checkpoint = make_checkpoint(tmp_path / "target", FAMILIES[family])
    smaller = make_checkpoint(tmp_path / "draft", seed=5)
    rng = random.Random(2)
    wanted = [random_request(rng) for _ in range(8)]
    policy = Always(TreeShape(10, 3, 4), TreeShape(6, 1, 5))
    engine = make_engine(checkpoint, 1, drafter=model_drafter(smaller, **limits), policy=policy, **limits)
    assert outputs(run(engine, wanted)) == [alone(checkpoint, one) for one in wanted]
    assert policy.emitted


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_target_as_its_own_draft_model_is_always_right_sampled_too(checkpoint, temperature):
    """A draft model draws with the target's noise, so equal models draw equal tokens."""
    params = SamplingParams(temperature=temperature, top_p=0.9, seed=3, max_tokens=25, ignore_eos=True)
    wanted = [([1, 2, 3], params, 0), ([9, 9], params, 1)]
    policy = Always(TreeShape(5, 1, 4))
    engine = make_engine(checkpoint, drafter=model_drafter(checkpoint), policy=policy)
    requests = run(engine, wanted)
    assert outputs(requests) == [alone(checkpoint, one) for one in wanted]
    # 24 tokens after the prefill's: four full steps of 5, and 4 left
    assert [request.statistics.snapshot().num_steps for request in requests] == [5, 5]


@pytest.mark.parametrize("read_lag", [0, 2])
@pytest.mark.parametrize("limits", [{}, {"num_blocks": 24, "max_num_tokens": 20}], ids=["roomy", "cramped"])
def test_a_random_draft_head_changes_nothing_greedy_or_sampled(checkpoint, limits, read_lag):
    drafter = random_head(checkpoint)
    rng = random.Random(6)
    wanted = [random_request(rng) for _ in range(8)]
    assert {request[1].temperature > 0 for request in wanted} == {True, False}
    policy = Always(TreeShape(10, 3, 4), TreeShape(6, 2, 3))
    engine = make_engine(checkpoint, read_lag, drafter=drafter, policy=policy, **limits)
    assert outputs(run(engine, wanted)) == [alone(checkpoint, one) for one in wanted]
    assert policy.emitted


def test_prompt_lookup_changes_nothing_and_finds_what_repeats(checkpoint):
    rng = random.Random(4)
    wanted = [(request[0] * 3, *request[1:]) for request in (random_request(rng, longest_prompt=9) for _ in range(8))]
    policy = Always(TreeShape(8, 2, 5))
    engine = make_engine(checkpoint, drafter=NgramDrafter(), policy=policy)
    assert outputs(run(engine, wanted)) == [alone(checkpoint, one) for one in wanted]
    assert engine.speculation.snapshot().num_draft_tokens > 0


def test_two_drafters_together_change_nothing(checkpoint):
    rng = random.Random(5)
    wanted = [random_request(rng) for _ in range(6)]
    drafter = CombinedDrafter(model_drafter(checkpoint), NgramDrafter())
    engine = make_engine(checkpoint, drafter=drafter, policy=Always(TreeShape(12, 2, 4)))
    assert outputs(run(engine, wanted)) == [alone(checkpoint, one) for one in wanted]
    assert engine.speculation.snapshot().accepted_length > 2.0


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["head", "model", "ngram"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_step_with_trees_takes_as_many_operations_for_eight_requests_as_for_two(checkpoint, name, temperature):
    """Drafting, packing, masks, the pass, acceptance and compaction are batched: none goes request by request."""

    def count(num_requests):
        limits = {"max_batch_size": 8, "num_blocks": 128}
        drafter = {"head": random_head, "ngram": lambda _: NgramDrafter()}.get(name, model_drafter)(checkpoint)
        engine = make_engine(checkpoint, drafter=drafter, policy=Always(TreeShape(8, 2, 3)), **limits)
        params = SamplingParams(temperature=temperature, seed=1, max_tokens=40, ignore_eos=True)
        for first in range(num_requests):
            engine.add([first + 1, 5, 5, 5], params)
        engine.step()
        step, counts = engine.backend.step, []

        def counted(plan, state):
            with Operations() as operations:
                handle = step(plan, state)
            counts.append(operations.count)
            assert [row.drafts for row in plan.rows] == [True] * num_requests
            return handle

        engine.backend.step = counted
        engine.step()
        return counts

    assert count(2) == count(8)


def test_sampled_speculative_output_has_the_target_distribution(tmp_path):
    """Chi-square over many seeds, against the exact distribution of a model with 12 tokens.

    Over the first two tokens, the second of which is drawn at a tree's root, and over the second and the third, which
    is drawn at an accepted node of the same tree more often than not.
    """
    checkpoint = make_checkpoint(tmp_path, replace(SPEC, vocab_size=12), seed=2)
    limits = {"max_batch_size": 64, "max_num_tokens": 256, "num_blocks": 256}
    drafter = model_drafter(checkpoint, vocab_size=12, **limits)
    engine = make_engine(checkpoint, drafter=drafter, policy=Always(TreeShape(4, 2, 2)), **limits)
    prompt, draws = [3, 1, 4], 3000
    requests = [
        engine.add(prompt, SamplingParams(temperature=1.3, seed=seed, max_tokens=3, ignore_eos=True))
        for seed in range(draws)
    ]
    while engine.has_work:
        engine.step()
    counts = torch.zeros(12, 12, 12)
    for request in requests:
        counts[tuple(request.output_ids)] += 1
    expected = torch.empty(12, 12, 12)
    for first in range(12):
        for second in range(12):
            logits = score(engine, [*prompt, first, second], first=len(prompt) - 1)
            chances = torch.softmax(logits / 1.3, dim=-1)
            expected[first, second] = draws * chances[0, first] * chances[1, second] * chances[2]
    assert engine.speculation.snapshot().num_accepted_tokens > draws / 2
    assert expected.sum() == pytest.approx(draws)
    assert_drawn_from(counts.sum(dim=2), expected.sum(dim=2))
    assert_drawn_from(counts.sum(dim=0), expected.sum(dim=0))
    with pytest.raises(AssertionError):  # another distribution is told apart
        assert_drawn_from(counts.sum(dim=0), expected.sum(dim=0).roll(1, dims=1))


def assert_drawn_from(counts, expected):
    """Chi-square over cells that 5 draws or more are expected of, and one for all others."""
    likely = expected >= 5
    observed = torch.cat([counts[likely], counts[~likely].sum().view(1)])
    wanted = torch.cat([expected[likely], expected[~likely].sum().view(1)])
    chi_square = float(((observed - wanted) ** 2 / wanted).sum())
    degrees = len(wanted) - 1
    assert degrees > 20
    # Wilson and Hilferty: the cube root of chi-square / degrees is nearly normal; 4 sigma, and the seeds are fixed.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 4 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_candidates_that_are_the_same_for_all_requests_are_laid_out_for_kernels(monkeypatch):
    packed = []
    monkeypatch.setattr(
        "runtime.speculation.candidates.tree_pack", lambda *parts: packed.extend(parts[:3]) or parts[:4]
    )
    same = Candidates(torch.ones(3, 2, dtype=torch.int64), torch.tensor([[-1, 0]]).expand(3, 2), torch.zeros(3, 2))
    pack(same, torch.zeros(3, dtype=torch.int64), 3)
    assert all(part.is_contiguous() for part in packed)
    assert torch.equal(packed[1], same.parents)
