"""The draft head against formulas written down here, its beam search against exhaustive search, its files' checks."""

import json
from itertools import product

import pytest
import torch

from pipelines.draft.evaluation import accepted_depths
from plugins.draft_pass import DrawNoise
from plugins.draft_pass.reference import draft_pass_reference
from plugins.sample import sample
from runtime.errors import EnginewrightError
from runtime.speculation.drafter import GivenContext
from runtime.speculation.redrafter import load_redrafter
from runtime.speculation.redrafter.drafter import ReDrafter
from runtime.speculation.redrafter.head import DraftHead
from runtime.speculation.redrafter.head_file import (
    HEAD_FILE,
    WEIGHTS_FILE,
    HeadDescription,
    read_description,
    read_head,
    write_head,
)
from runtime.speculation.redrafter.loading import draft_weights, make_redrafter
from runtime.speculation.tree import TreeShape
from tests.runtime.heads import head_config, head_tensors, write_random_head

V, H = 260, 32


def sigmoid_gated(x):
    return x / (1 + torch.exp(-x))


def apple_logits(weights, rows, context, embedded):
    """Logits after each token of a path, (T, V_draft); `embedded` (T, H) are the path's embeddings."""
    state, results = torch.zeros(H, dtype=torch.float64), []
    for x in embedded:
        state = sigmoid_gated(
            weights["drafter.rnn_w.weight"] @ x + weights["drafter.rnn_u.weight"] @ state
            + weights["drafter.rnn_u.bias"]
        )  # fmt: skip
        results.append(exit_logits(weights, rows, context, state))
    return torch.stack(results)


def tensorrt_llm_logits(weights, rows, context, embedded):
    state, results = None, []
    for x in embedded:
        previous, state = state, weights["drafter.rnn_w.weight"] @ x
        if previous is not None:
            state = state + weights["drafter.rnn_u.weight"] @ previous + weights["drafter.rnn_u.bias"]
        results.append(exit_logits(weights, rows, context, state))
    return torch.stack(results)


def exit_logits(weights, rows, context, state):
    y = weights["drafter.input_proj.weight"] @ torch.cat([context, state]) + weights["drafter.input_proj.bias"]
    for block in range(2):
        y = y + sigmoid_gated(
            weights[f"drafter.layers.{block}.linear.weight"] @ y + weights[f"drafter.layers.{block}.linear.bias"]
        )
    return rows @ y


FORMULAS = {"apple": apple_logits, "tensorrt_llm": tensorrt_llm_logits}


@pytest.mark.parametrize("dialect", list(FORMULAS))
def test_a_head_computes_its_dialects_formulas(dialect):
    config = head_config(dialect=dialect)
    weights, embedded = head_tensors(config), torch.randn(4, H, dtype=torch.float64)
    context, rows = torch.randn(H, dtype=torch.float64), torch.randn(50, H, dtype=torch.float64)
    head = DraftHead(config, weights, rows, "torch")
    begun, state, found = head.begin(context[None]), None, []
    for x in embedded:
        state = head.advance(x[None], state)
        found.append(head.logits(begun, state)[0])
    torch.testing.assert_close(torch.stack(found), FORMULAS[dialect](weights, rows, context, embedded))


def draft_context(batch: int, dtype=torch.float64) -> GivenContext:
    generator = torch.Generator().manual_seed(3)
    zeros = torch.zeros(batch, dtype=torch.int64)
    return GivenContext(
        root_ids=torch.randint(V, (batch,), generator=generator), positions=zeros + 9,
        hidden=torch.randn(batch, H, generator=generator, dtype=torch.float64).to(dtype),
        history=torch.zeros(batch, 16, dtype=torch.int64), block_tables=torch.zeros(batch, 4, dtype=torch.int64),
        temperature=torch.zeros(batch), top_k=zeros, top_p=torch.ones(batch), min_p=torch.zeros(batch), seed=zeros,
        sample_index=zeros,
    )  # fmt: skip


def paths_of(tree, row):
    """The tokens on the way to every node of one request's tree."""
    paths = {0: ()}
    for node in range(1, tree.token_ids.shape[1]):
        if tree.token_ids[row, node] >= 0:
            paths[node] = (*paths[int(tree.parents[row, node])], int(tree.token_ids[row, node]))
    return [paths[node] for node in sorted(paths) if node]


@pytest.mark.parametrize("tied", [True, False])
def test_a_tree_holds_the_most_likely_paths(tied):
    config = head_config(tied_head=tied, draft_vocab_size=6, exit_dim=32 if tied else 20)
    weights = head_tensors(config)
    embedding, target_head = torch.randn(2, V, H, dtype=torch.float64).mul(0.5)
    drafter = make_redrafter(config, weights, embedding, target_head, "torch")
    context = draft_context(3)
    tree = drafter.propose(context, TreeShape(num_nodes=12, num_beams=36, depth=3))  # beams enough for all prefixes
    ids = weights["draft_vocab_ids"].long()
    rows = (target_head if tied else weights["drafter.lm_head.weight"])[ids]
    for row in range(3):
        scores = {}
        for depth in (1, 2, 3):
            for path in product(range(6), repeat=depth):
                tokens = [int(context.root_ids[row]), *ids[list(path)].tolist()]
                logits = apple_logits(weights, rows, context.hidden[row], embedding[tokens[:-1]])
                logs = logits.log_softmax(-1)
                scores[tuple(tokens[1:])] = sum(float(logs[step, token]) for step, token in enumerate(path))
        best = sorted(scores, key=lambda path: -scores[path])[:11]
        assert set(paths_of(tree, row)) == set(best)
        assert tree.token_ids[row, 0] == context.root_ids[row]


@pytest.mark.parametrize("dialect", list(FORMULAS))
@pytest.mark.parametrize("samples", [False, True])
def test_torch_drafts_what_the_reference_of_the_kernel_says(dialect, samples):
    config = head_config(dialect=dialect, exit_dim=20, tied_head=False)
    tensors = head_tensors(config)
    embedding = torch.randn(V, H, dtype=torch.float64)
    drafter = make_redrafter(config, tensors, embedding, embedding, "torch")
    context, shape = sampled_contexts(3, V, 0.7)._replace(samples=samples), TreeShape(16, 3, 5)
    tree = drafter.propose(context, shape)
    ids = tensors["draft_vocab_ids"].long()
    weights = draft_weights(config, tensors, embedding, tensors["drafter.lm_head.weight"][ids], ids)
    for row in range(3):
        noise = DrawNoise(*(value[row] for value in (context.temperature, context.seed, context.sample_index)))
        expected = draft_pass_reference(
            weights, context.hidden[row], int(context.root_ids[row]), int(context.positions[row]),
            noise if samples else None, shape.num_nodes, shape.num_beams, shape.depth,
        )  # fmt: skip
        assert tree.token_ids[row].tolist() == expected[0]
        assert tree.parents[row].tolist() == expected[1]
        assert tree.depths[row].tolist() == expected[2]
        assert tree.ancestors[row].tolist() == [sum(1 << node for node in seen) for seen in expected[3]]


def test_a_request_drafts_the_same_alone_and_in_a_batch():
    config = head_config()
    embedding = torch.randn(V, H, dtype=torch.float64)
    drafter = make_redrafter(config, head_tensors(config), embedding, embedding, "torch")
    context, shape = draft_context(4), TreeShape(16, 3, 5)
    together = drafter.propose(context, shape)
    for row in range(4):
        alone = drafter.propose(GivenContext(*(field[row : row + 1] for field in context[:-2])), shape)
        for ours, theirs in zip(alone, together, strict=True):
            assert torch.equal(ours[0], theirs[row])


class BigramHead:
    """Equals a target whose logits depend on the last token alone: row i of `table` (V, V) follows token i."""

    def __init__(self, table):
        self.table = table

    def begin(self, context):
        return context

    def advance(self, embedded, state):
        return embedded

    def logits(self, begun, state):
        return state @ self.table


def sampled_contexts(num, vocab_size, temperature):
    context = draft_context(num)
    return context._replace(
        root_ids=context.root_ids % vocab_size, temperature=torch.full((num,), temperature),
        seed=torch.arange(num) + 2**33, sample_index=torch.arange(num) % 3,
    )  # fmt: skip


def target_draws(table, context, num_tokens):
    """(B, K) tokens that the target itself draws after the roots."""
    ids, drawn = context.root_ids, []
    for ahead in range(1, num_tokens + 1):
        ids = sample(
            table[ids].float(), context.temperature, context.top_k, context.top_p, context.min_p, context.seed,
            context.sample_index, context.positions + ahead, torch.empty_like(ids),
        )  # fmt: skip
        drawn.append(ids)
    return torch.stack(drawn, 1)


def test_a_head_that_equals_the_target_knows_what_it_draws():
    size = 12
    table = 2.0 * torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drafter = ReDrafter(BigramHead(table), torch.eye(size, dtype=torch.float64), torch.arange(size))
    context, shape = sampled_contexts(64, size, 1.0), TreeShape(12, 3, 4)
    coming = target_draws(table, context, shape.depth)
    depths = {
        samples: accepted_depths(drafter.propose(context._replace(samples=samples), shape), coming).float().mean()
        for samples in (True, False)
    }
    assert depths[True] > 3.2  # of 4 tokens
    assert depths[False] < depths[True] - 1.5


def test_greedy_requests_beside_sampled_ones_draft_as_without_noise():
    config = head_config()
    embedding = torch.randn(V, H, dtype=torch.float64)
    drafter = make_redrafter(config, head_tensors(config), embedding, embedding, "torch")
    context, shape = draft_context(4), TreeShape(16, 3, 5)
    greedy = drafter.propose(context._replace(samples=False), shape)
    mixed = drafter.propose(context._replace(temperature=torch.tensor([0.0, 0.0, 0.0, 1.5])), shape)
    for ours, theirs in zip(greedy, mixed, strict=True):
        assert torch.equal(ours[:3], theirs[:3])
    assert not torch.equal(greedy.token_ids[3], mixed.token_ids[3])


def test_a_stored_head_drafts_as_its_tensors_do(tmp_path, checkpoint):
    config = head_config()
    tensors = write_random_head(tmp_path, config)
    embedding = dict(checkpoint.tensors())["transformer.vocab_embedding.weight"]
    stored = load_redrafter(tmp_path, checkpoint, torch.float32, "onednn")
    plain = make_redrafter(config, tensors, embedding, embedding, "torch")
    context, shape = draft_context(2, torch.float32), TreeShape(12, 4, 3)
    assert torch.equal(stored.propose(context, shape).token_ids, plain.propose(context, shape).token_ids)
    assert read_description(tmp_path).base_name == "tiny"


def damage_json(key, value):
    def damage(folder):
        fields = json.loads((folder / HEAD_FILE).read_text())
        (fields if key in fields else fields["config"])[key] = value
        (folder / HEAD_FILE).write_text(json.dumps(fields))

    return damage


DAMAGES = {
    "schema 7": damage_json("schema", 7),
    "dialect 'medusa'": damage_json("dialect", "medusa"),
    "must be 32": damage_json("exit_dim", 16),
    "layers.2.linear.bias is missing": damage_json("num_blocks", 3),
    "not a draft head's description": damage_json("trees", 3),
    "the target has 260": damage_json("draft_vocab_size", 300),
    r"shape \(50,\)": damage_json("draft_vocab_size", 40),
    "sha256": lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"\0" + (folder / WEIGHTS_FILE).read_bytes()[1:]),
    "head.safetensors": lambda folder: (folder / WEIGHTS_FILE).unlink(),
    "head.json": lambda folder: (folder / HEAD_FILE).unlink(),
}


@pytest.mark.parametrize("message", list(DAMAGES))
def test_a_damaged_head_is_refused_in_one_line(tmp_path, message):
    write_random_head(tmp_path, head_config())
    DAMAGES[message](tmp_path)
    with pytest.raises(EnginewrightError, match=message):
        read_head(tmp_path)


def test_a_head_that_is_not_finite_or_for_another_model_is_refused(tmp_path, checkpoint):
    config = head_config()
    tensors = head_tensors(config, dtype=torch.float32)
    tensors["drafter.rnn_u.bias"][3] = torch.nan
    write_head(tmp_path, HeadDescription(config, "tiny", "", ""), tensors)
    with pytest.raises(EnginewrightError, match="holds NaN"):
        read_head(tmp_path)
    write_random_head(tmp_path, head_config(vocab_size=300))
    with pytest.raises(EnginewrightError, match="vocab_size 300, but this model has 260"):
        load_redrafter(tmp_path, checkpoint, torch.float32, "torch")
