"""The drafting model against itself computed from scratch, in float64."""

import json
from dataclasses import replace

import pytest
import torch

from plugins.sample.reference import sample_reference
from runtime.batch import Batch
from runtime.errors import EnginewrightError
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.speculation.draft_model import ModelDrafter, check_same_tokenizer
from runtime.speculation.tree import TreeShape
from runtime.text.tokenizer import Tokenizer
from tests.runtime.speculation.contexts import check_tree, make_context, paths
from tests.runtime.tiny import SPEC, make_checkpoint, make_tokenizer

BLOCK_SIZE = 4
NUM_BLOCKS = 32
TEXTS = [[5, 9, 200, 31, 7], [1] * 11, [77]]
TABLES = torch.tensor([[3, 1, 20, 6, 9, 11, 12, 13], [0, 2, 4, 5, 7, 8, 10, 14], [31, 30, 29, 28, 27, 26, 25, 24]])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    spec = replace(SPEC, num_layers=1, vocab_size=264)
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("draft"), spec, seed=5)
    return Decoder(checkpoint, torch.float64, "torch", max_seq_len=96)


def new_cache(decoder):
    cache = KVCache(decoder.spec, NUM_BLOCKS, BLOCK_SIZE, torch.float64)
    cache.storage.fill_(1e3)  # what nothing wrote would show
    return cache


def make_drafter(decoder, vocab_size=260):
    return ModelDrafter(decoder, new_cache(decoder), vocab_size)


def chunk(token_ids, start, table, logit_rows=()):
    """One request's tokens from `start` on."""
    positions = torch.arange(start, start + len(token_ids))
    return Batch(
        token_ids=torch.tensor(token_ids),
        positions=positions,
        cache_positions=positions,
        query_starts=torch.tensor([0, len(token_ids)]),
        context_lens=torch.tensor([start + len(token_ids)]),
        block_tables=table.unsqueeze(0),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
    )


def next_logits(decoder, text):
    """Logits after a text, computed from scratch."""
    batch = chunk(text, 0, torch.arange(NUM_BLOCKS), [len(text) - 1])
    return decoder.forward(batch, new_cache(decoder)).logits[0, :260]


def follow_texts(drafter, texts=TEXTS):
    """What the target computes of prompts: all but the last token, in chunks of 3."""
    for text, table in zip(texts, TABLES[: len(texts)], strict=True):
        for start in range(0, len(text) - 1, 3):
            stop = min(start + 3, len(text) - 1)
            drafter.follow(chunk(text[start:stop], start, table, [0]))


def test_greedy_tree_is_the_chain_of_argmaxes_with_the_runners_up(decoder):
    drafter = make_drafter(decoder)
    follow_texts(drafter)
    context = make_context(TEXTS, block_tables=TABLES)
    tree = drafter.propose(context, TreeShape(num_nodes=13, num_beams=3, depth=4))  # 12 candidates, all kept
    check_tree(tree, context.root_ids, 13)
    for request, text in enumerate(TEXTS):
        expected, chain = set(), []
        for _ in range(4):
            best = next_logits(decoder, [*text, *chain]).topk(3).indices.tolist()
            expected |= {(*chain, token) for token in best}
            chain.append(best[0])
        assert paths(tree, request) == expected


def test_a_small_tree_keeps_the_nodes_of_the_best_cumulative_log_probability(decoder):
    drafter = make_drafter(decoder)
    follow_texts(drafter)
    context = make_context(TEXTS, block_tables=TABLES)
    shape = TreeShape(num_nodes=6, num_beams=4, depth=4)
    tree = drafter.propose(context, shape)
    for request, text in enumerate(TEXTS):
        scores, chain, above = {}, [], 0.0
        for _ in range(4):
            values, best = next_logits(decoder, [*text, *chain]).log_softmax(0).topk(4)
            for token, value in zip(best.tolist(), values.tolist(), strict=True):
                scores[(*chain, token)] = above + value
            chain.append(int(best[0]))
            above += float(values[0])
        assert paths(tree, request) == set(sorted(scores, key=scores.__getitem__)[-5:])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_sampled_chain_draws_with_the_targets_noise_and_filters(decoder, num_beams):
    drafter = make_drafter(decoder)
    follow_texts(drafter)
    params = {"temperature": torch.tensor([0.8, 1.3, 1.0]), "top_k": torch.tensor([0, 7, 0]),
              "top_p": torch.tensor([1.0, 0.9, 0.7]), "seed": torch.tensor([11, 2**40 + 5, -3]),
              "sample_index": torch.tensor([0, 2, 1])}  # fmt: skip
    context = make_context(TEXTS, block_tables=TABLES, **params)
    tree = drafter.propose(context, TreeShape(num_nodes=13, num_beams=num_beams, depth=4))
    check_tree(tree, context.root_ids, 13)
    for request, text in enumerate(TEXTS):
        chain: list[int] = []
        for _ in range(4):
            logits = next_logits(decoder, [*text, *chain]).tolist()
            settings = [tensor[request].item() for tensor in (context.temperature, context.top_k, context.top_p)]
            drawn = (context.seed[request].item(), context.sample_index[request].item(), len(text) + len(chain))
            chain.append(sample_reference(logits, *settings, 0.0, *drawn))
            assert tuple(chain) in paths(tree, request)


def test_runners_up_of_a_draw_are_those_that_the_noise_favours(decoder):
    drafter = make_drafter(decoder, vocab_size=8)  # a pool of 8 holds the whole vocabulary
    follow_texts(drafter)
    context = make_context(TEXTS, block_tables=TABLES, temperature=1.0, seed=4)
    tree = drafter.propose(context, TreeShape(num_nodes=4, num_beams=3, depth=1))
    for request, text in enumerate(TEXTS):
        logits, expected = next_logits(decoder, text)[:8].tolist(), set()
        for _ in range(3):  # the second best of a draw is drawn once the best is out
            token = sample_reference(logits, 1.0, 0, 1.0, 0.0, 4, 0, len(text))
            expected.add((token,))
            logits[token] = -1e9
        assert paths(tree, request) == expected


def test_caches_equal_a_fresh_prefill_after_a_tree_was_verified_and_compacted(decoder):
    drafter = make_drafter(decoder)
    text, table = TEXTS[0], TABLES[0]
    follow_texts(drafter, [text])
    context = make_context([text], block_tables=TABLES[:1])
    tree = drafter.propose(context, TreeShape(num_nodes=8, num_beams=3, depth=3))
    drafter.follow(tree_batch(tree, context))
    deepest = int(tree.depths[0].argmax())
    path = [node for node in range(8) if int(tree.ancestors[0, deepest]) >> node & 1]
    assert path != list(range(len(path))), "the path has to move for the test to mean anything"
    root = len(text) - 1
    for depth, node in enumerate(path):
        rows(drafter.caches[0], table, root + depth).copy_(rows(drafter.caches[0], table, root + node))

    full = text + tree.token_ids[0, path[1:]].tolist()
    fresh = make_drafter(decoder)
    fresh.follow(chunk(full, 0, table))
    for position in range(len(full)):
        torch.testing.assert_close(
            rows(drafter.caches[0], table, position), rows(fresh.caches[0], table, position), rtol=1e-9, atol=1e-12
        )


def tree_batch(tree, context):
    """The target's pass over one request's tree."""
    num_nodes, root = tree.token_ids.shape[1], int(context.positions[0])
    return Batch(
        token_ids=tree.token_ids.flatten(),
        positions=root + tree.depths.flatten(),
        cache_positions=root + torch.arange(num_nodes),
        query_starts=torch.tensor([0, num_nodes]),
        context_lens=torch.tensor([root + num_nodes]),
        block_tables=context.block_tables,
        logit_rows=torch.arange(num_nodes),
        ancestors=tree.ancestors,
    )


def rows(cache, table, position):
    """Keys and values of all layers at one position: (2 L, N_kv, D), a view."""
    return cache.storage[:, int(table[position // BLOCK_SIZE]), :, position % BLOCK_SIZE]


def test_tokens_of_only_one_vocabulary_are_ignored_or_never_proposed(decoder):
    drafter = make_drafter(decoder, vocab_size=3)
    drafter.follow(chunk([9999], 0, TABLES[0]))
    context = make_context([[1, 9999]], block_tables=TABLES[:1])
    tree = drafter.propose(context, TreeShape(num_nodes=12, num_beams=5, depth=3))
    check_tree(tree, context.root_ids, 12)
    assert tree.token_ids[0, 1:].max() < 3


def test_a_tokenizer_that_differs_is_refused_by_its_first_difference(tmp_path):
    target = make_tokenizer(tmp_path / "target")
    check_same_tokenizer(target, make_tokenizer(tmp_path / "same", template=None))
    make_tokenizer(tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["added_tokens"][1]["content"] = "<|human|>"
    path.write_text(json.dumps(fields))
    with pytest.raises(EnginewrightError, match=r"token 257 is '<\|human\|>', special, in the target it is '<\|user"):
        check_same_tokenizer(target, Tokenizer(tmp_path / "other"))
    del fields["added_tokens"][3]
    fields["added_tokens"][1]["content"] = "<|user|>"
    path.write_text(json.dumps(fields))
    with pytest.raises(EnginewrightError, match="token 259 is missing"):
        check_same_tokenizer(target, Tokenizer(tmp_path / "other"))
