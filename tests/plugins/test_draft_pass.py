"""The draft pass against its reference: emulated on the CPU, and on a GPU where there is one."""

from itertools import pairwise

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.draft_pass import DraftTexts, DraftWeights, DrawNoise
from plugins.draft_pass.cuda import DraftPass
from plugins.draft_pass.plan import Device, HeadSizes, PassPlan, PassSizes, head_refusal, plan_pass
from plugins.draft_pass.reference import draft_candidates
from plugins.draft_pass.state import tiled
from plugins.tree_pack.reference import tree_pack_reference

EMULATED = Device(processors=8, shared_bytes=64 * 1024)
# Weights, s and y are rounded to 8 bits (relative 2^-9); a path's score adds up K logits, each some ten roundings deep.
TOLERANCE = 0.06


def random_weights(
    hidden_size=32, exit_dim=64, num_blocks=2, num_draft=150, vocab_size=400, dtype=torch.bfloat16, has_silu=True
) -> DraftWeights:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    h, e = hidden_size, exit_dim
    return DraftWeights(
        embedding=normal(vocab_size, h), context_proj=normal(e, h, scale=h**-0.5), context_bias=normal(e, scale=0.2),
        rnn_w=normal(h, h, scale=h**-0.5), rnn_u=normal(h, h, scale=h**-0.5), rnn_bias=normal(h, scale=0.2),
        state_proj=normal(e, h, scale=h**-0.5), blocks=normal(num_blocks, e, e, scale=e**-0.5),
        block_biases=normal(num_blocks, e, scale=0.2), lm_head=normal(num_draft, e, scale=2.0 * e**-0.5),
        vocab_ids=torch.randperm(vocab_size, generator=generator)[:num_draft].sort().values, has_silu=has_silu,
    )  # fmt: skip


class Batch:
    """What requests have when they draft; every third is greedy, where there is noise."""

    def __init__(self, requests: int, weights: DraftWeights, with_noise: bool) -> None:
        generator = torch.Generator().manual_seed(requests)
        vocab_size, hidden_size = weights.embedding.shape
        self.hidden = torch.randn(requests, hidden_size, generator=generator)
        self.root_ids = torch.randint(vocab_size, (requests,), generator=generator)
        self.positions = torch.arange(requests) * 5 + 7
        temperature = torch.tensor([0.8, 0.0, 1.5])[torch.arange(requests) % 3]
        seeds = torch.arange(requests) * 11 + 2**35
        self.noise = DrawNoise(temperature, seeds, torch.arange(requests) % 2) if with_noise else None

    def arguments(self, device: str, rows: slice = slice(None)):
        """The requests from the last slot down, in tables with one slot more."""
        requests = len(self.positions)
        slots = requests - torch.arange(requests)[rows]
        place = requests - torch.arange(requests)

        def table(values: torch.Tensor) -> torch.Tensor:
            kept = torch.zeros(requests + 1, *values.shape[1:], dtype=values.dtype)
            kept[place] = values
            return kept.to(device)

        history = torch.full((requests + 1, int(self.positions.max()) + 2), -1)
        history[place, self.positions] = self.root_ids
        texts = DraftTexts(slots.to(device), table(self.hidden), table(self.positions + 1), history.to(device))
        return texts, self.noise and DrawNoise(*(table(value) for value in self.noise))

    def of_request(self, row: int):
        noise = self.noise and DrawNoise(*(value[row] for value in self.noise))
        return self.hidden[row], int(self.root_ids[row]), int(self.positions[row]), noise


def make_pass(weights: DraftWeights, device: str, plan_for: Device = EMULATED) -> DraftPass:
    moved = DraftWeights(*(part.to(device) if torch.is_tensor(part) else part for part in weights))
    return DraftPass(moved, None if device == "cuda" else plan_for)


def draft(draft_pass, batch, sizes, device, rows=slice(None)):
    tree = draft_pass(sizes, *batch.arguments(device, rows))
    return [part.cpu() for part in tree]


def paths_of(tree, row):
    """(path, depth) of every node but the root and padding, in the order of the nodes."""
    token_ids, parents, depths, ancestors = (part[row].tolist() for part in tree)
    paths, bits = {0: ()}, {0: 1}
    for node in range(1, len(token_ids)):
        if token_ids[node] < 0:
            assert (parents[node], depths[node]) == (0, 0)
            assert ancestors[node] == 1 | (1 << node) - (1 << 64) * (node == 63)
            continue
        assert parents[node] < node
        paths[node] = (*paths[parents[node]], token_ids[node])
        bits[node] = bits[parents[node]] | 1 << node
        assert depths[node] == len(paths[node])
        assert ancestors[node] == bits[node] - (1 << 64) * (node == 63)
    return [paths[node] for node in sorted(paths) if node]


def scored_paths(weights, batch, row, sizes):
    """The reference's candidates as {path: score}, and the least distance at which it kept one and not the next."""
    arguments = batch.of_request(row)
    ids, parents, scores = draft_candidates(weights, *arguments, sizes.num_nodes, sizes.num_beams, sizes.depth)
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(ids, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    ranked, width = sorted(scores, reverse=True), sizes.num_beams
    gaps = [ranked[sizes.num_nodes - 2] - ranked[sizes.num_nodes - 1]] if len(ranked) >= sizes.num_nodes else []
    for first in range(0, len(scores), sizes.num_candidates):
        gaps += [scores[first + width - 1] - scores[first + width]] if width < sizes.num_candidates else []
    tree = tree_pack_reference(ids, parents, scores, arguments[1], sizes.num_nodes)
    kept = paths_of([torch.tensor([part]) for part in (*tree[:3], [_bits(seen) for seen in tree[3]])], 0)
    return dict(zip(paths, scores, strict=True)), kept, min(gaps, default=1.0)


def _bits(seen):
    bits = sum(1 << node for node in seen)
    return bits - (1 << 64) * (bits >= 1 << 63)


def check_against_reference(weights, batch, sizes, tree):
    """A tree has the reference's paths, but for those that rounding may have exchanged at an edge."""
    exact = 0
    for row in range(sizes.requests):
        assert tree[0][row, 0] == batch.root_ids[row]
        scores, kept, gap = scored_paths(weights, batch, row, sizes)
        paths = paths_of(tree, row)
        assert len(set(paths)) == len(paths) == len(kept)
        if gap > TOLERANCE:
            exact += 1
            assert set(paths) == set(kept)
        for one, after in pairwise(path for path in paths if path in scores):
            assert len(one) < len(after) or scores[one] > scores[after] - TOLERANCE
        worst = min(scores[path] for path in kept)
        common = [path for path in paths if path in scores]
        assert len(common) >= 0.8 * len(paths)
        assert all(scores[path] > worst - TOLERANCE for path in common)
    return exact


SHAPES = {
    "one beam": PassSizes(1, 6, 1, 4),
    "wide": PassSizes(1, 12, 9, 3),
    "two row blocks": PassSizes(3, 20, 4, 5),
    "four row blocks": PassSizes(5, 9, 7, 3),
    "two groups": PassSizes(9, 5, 5, 2),
    "full tree": PassSizes(2, 64, 8, 4),
}


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_a_tree_is_that_of_the_reference(kernel_device, name, with_noise):
    sizes, weights = SHAPES[name], random_weights()
    batch = Batch(sizes.requests, weights, with_noise)
    draft_pass = make_pass(weights, kernel_device)
    tree = draft(draft_pass, batch, sizes, kernel_device)
    check_against_reference(weights, batch, sizes, tree)
    again = draft(draft_pass, batch, sizes, kernel_device)  # over the words of the launch before
    assert all(torch.equal(one, other) for one, other in zip(tree, again, strict=True))


HEADS = {
    "float16": {"dtype": torch.float16},
    "tensorrt_llm": {"has_silu": False},
    "no residual blocks": {"num_blocks": 0},
    "one tile": {"num_draft": 11, "hidden_size": 64, "exit_dim": 32},
    "many steps": {"hidden_size": 576, "exit_dim": 544, "num_blocks": 1, "num_draft": 64},
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_other_sizes_draft_as_the_reference(kernel_device, name):
    weights, sizes = random_weights(**HEADS[name]), PassSizes(2, 12, 3, 4)
    batch = Batch(2, weights, with_noise=True)
    tree = draft(make_pass(weights, kernel_device), batch, sizes, kernel_device)
    check_against_reference(weights, batch, sizes, tree)


def test_most_trees_leave_nothing_to_rounding():
    weights, sizes = random_weights(), PassSizes(24, 8, 2, 3)
    batch = Batch(24, weights, with_noise=False)
    gaps = [scored_paths(weights, batch, row, sizes)[2] for row in range(24)]
    assert sum(gap > TOLERANCE for gap in gaps) >= 6, "the exact comparison above never takes place"


def test_a_request_drafts_the_same_alone_and_in_a_batch(kernel_device):
    weights = random_weights()
    batch, draft_pass = Batch(9, weights, with_noise=True), make_pass(weights, kernel_device)
    together = draft(draft_pass, batch, PassSizes(9, 12, 4, 4), kernel_device)
    for row in (0, 4, 8):
        alone = draft(draft_pass, batch, PassSizes(1, 12, 4, 4), kernel_device, slice(row, row + 1))
        assert all(torch.equal(one[0], other[row]) for one, other in zip(alone, together, strict=True))


def test_what_stays_in_shared_memory_changes_nothing(kernel_device):
    weights, sizes = random_weights(exit_dim=128), PassSizes(2, 12, 4, 3)
    batch = Batch(2, weights, with_noise=True)
    trees, residents = [], set()
    for shared_bytes in (64 << 10, 40 << 10, 30 << 10):
        device = Device(8, shared_bytes)
        plan = plan_pass(HeadSizes(32, 128, 2, 150, 400), sizes, device)
        assert isinstance(plan, PassPlan), plan
        residents.add((plan.chain_resident, plan.head_resident))
        moved = DraftWeights(*(part.to(kernel_device) if torch.is_tensor(part) else part for part in weights))
        trees.append(draft(DraftPass(moved, device), batch, sizes, kernel_device))
    assert len(residents) == 3
    assert all(torch.equal(*parts) for other in trees[1:] for parts in zip(trees[0], other, strict=True))


def test_ties_go_to_the_earlier_beam_and_token(kernel_device):
    weights = random_weights()
    weights = weights._replace(lm_head=torch.zeros_like(weights.lm_head))
    batch, sizes = Batch(1, weights, with_noise=False), PassSizes(1, 64, 8, 2)
    paths = paths_of(draft(make_pass(weights, kernel_device), batch, sizes, kernel_device), 0)
    assert paths == [(token,) for token in weights.vocab_ids[:63].tolist()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_overflow_leave_trees_that_are_trees(kernel_device, value):
    weights = random_weights()
    weights.lm_head[3:40, 5] = value
    batch, sizes = Batch(2, weights, with_noise=True), PassSizes(2, 12, 3, 4)
    tree = draft(make_pass(weights, kernel_device), batch, sizes, kernel_device)
    known = {-1, *batch.root_ids.tolist(), *weights.vocab_ids.tolist()}
    for row in range(2):
        paths_of(tree, row)
        assert set(tree[0][row].tolist()) <= known


def test_a_weight_is_laid_out_as_the_tiles_say():
    weight = torch.arange(20 * 64).view(20, 64)
    tiles = tiled(weight)
    assert tiles.shape == (2, 2, 2, 32, 8)
    for lane in range(32):
        for half in range(2):
            expected = weight[8 * half + lane // 4, 32 + 8 * (lane % 4) :][:8]
            assert torch.equal(tiles[0, 1, half, lane], expected)
    assert not tiles[1, :, 1].any()
    assert not tiles[1, :, 0, 16:].any()


H100 = Device(132, 227 * 1024)
SMOLLM2 = HeadSizes(576, 576, 7, 16384, 49152)


def test_the_shipped_head_lies_in_shared_memory_whole():
    for nodes, beams, depth in ((8, 1, 4), (12, 2, 5), (32, 4, 6), (64, 8, 6)):
        plan = plan_pass(SMOLLM2, PassSizes(1, nodes, beams, depth), H100)
        assert isinstance(plan, PassPlan)
        assert plan.chain_resident == 10
        assert plan.head_resident == 11


@pytest.mark.parametrize(
    ("sizes", "device", "reason"),
    [
        (PassSizes(65, 12, 2, 5), H100, "65 requests with 2 beams; the draft pass takes 128 beams"),
        (PassSizes(1, 64, 64, 3), H100, "a block has 232448"),
        (PassSizes(1, 12, 2, 5), Device(4, 101376), "4 multiprocessors"),
    ],
)
def test_what_has_no_room_is_said_in_one_line(sizes, device, reason):
    assert reason in str(plan_pass(SMOLLM2, sizes, device))


@pytest.mark.parametrize(
    ("head", "dtype", "reason"),
    [
        (SMOLLM2, torch.float32, "float32"),
        (SMOLLM2._replace(hidden_size=80), torch.bfloat16, "hidden_size is 80"),
        (SMOLLM2._replace(exit_dim=100), torch.bfloat16, "exit_dim is 100"),
    ],
)
def test_a_head_that_no_pass_can_run_is_said_in_one_line(head, dtype, reason):
    assert head_refusal(SMOLLM2, torch.float16) is None
    assert reason in str(head_refusal(head, dtype))


def test_too_few_drafted_tokens_for_a_tree_are_said_in_one_line():
    assert "30 drafted tokens; trees of 64 nodes need 63" in str(
        plan_pass(SMOLLM2._replace(num_draft=30), PassSizes(1, 64, 2, 5), H100)
    )


def test_inputs_of_another_shape_or_dtype_are_refused(kernel_device):
    weights, sizes = random_weights(), PassSizes(2, 12, 3, 4)
    draft_pass = make_pass(weights, kernel_device)
    texts, noise = Batch(2, weights, with_noise=False).arguments(kernel_device)
    with pytest.raises(KernelError, match="hidden is"):
        draft_pass(sizes, texts._replace(hidden=texts.hidden[:1]), noise)
    with pytest.raises(KernelError, match="hidden is"):
        draft_pass(sizes, texts._replace(hidden=texts.hidden.bfloat16()), noise)
    with pytest.raises(KernelError, match="slots is"):
        draft_pass(sizes, texts._replace(slots=texts.slots.int()), noise)
