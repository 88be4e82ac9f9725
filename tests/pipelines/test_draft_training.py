"""Training of draft heads on a tiny model: the data, the loss, resuming, and the offline measure."""

import hashlib
import itertools
import json

import pytest
import torch

from pipelines.digest import json_digest
from pipelines.draft.corpus import Corpus, pack_texts, with_hidden
from pipelines.draft.evaluation import GreedyPath, accepted_depths, greedy_paths, walk_paths
from pipelines.draft.loss import head_loss, targets_of
from pipelines.draft.recipe import read_curves, write_trained
from pipelines.draft.synthesis import Synthesis, SynthesisSettings, make_scripts, synthesise
from pipelines.draft.target import TargetModel
from pipelines.draft.train import OPENINGS_FILE, PROMPTS_FILE
from pipelines.draft.training import LoopSettings, Training, draft_vocabulary, labels_of, run_training
from runtime.errors import EnginewrightError
from runtime.scoring import score
from runtime.speculation.redrafter.head_file import HeadConfig, HeadDescription, read_head
from runtime.speculation.redrafter.loading import make_redrafter
from runtime.speculation.tree import DraftTree, TreeShape
from tests.runtime.tiny import EOS, make_checkpoint, make_engine, make_tokenizer

SEE, THE, CAT, DOG, SAT, RAN = range(10, 16)
SETTINGS = LoopSettings(num_steps=6, batch_positions=64, future_tokens=3, warmup_steps=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def target(checkpoint):
    return TargetModel(checkpoint, torch.float32)


@pytest.fixture(scope="module")
def corpus(target, tokenizer) -> Corpus:
    return write_corpus(target, tokenizer, seed=3)


def write_corpus(target, tokenizer, seed) -> Corpus:
    settings = SynthesisSettings(8, 120, seed=seed, user_tokens=6, answer_tokens=20)
    scripts = make_scripts(tokenizer, ["Write", "def f", ""], target.device)
    return synthesise(Synthesis(target, scripts, frozenset([EOS]), settings), True, lambda done, total: None)


def new_training(corpus, target):
    config = HeadConfig(32, 32, 2, 260, 64)
    vocab_ids = draft_vocabulary(corpus, 260, 64, frozenset([EOS]))
    return Training(config, vocab_ids, corpus, target, SETTINGS)


def train(training, state_file, values=()):
    values = iter(values)
    return run_training(
        training, state_file, 2, lambda step, metrics: None, lambda current: next(values, 0.0), lambda tensors: None
    )


def test_lockstep_decoding_agrees_with_whole_rows_and_with_the_engine(target, corpus, checkpoint):
    whole = target.encode(corpus.token_ids.long(), corpus.positions.long())
    torch.testing.assert_close(whole, corpus.hidden, atol=2e-5, rtol=1e-4)
    ids = corpus.token_ids[0, :12].tolist()
    expected = score(make_engine(checkpoint), ids).log_softmax(-1).float()
    logits = corpus.hidden[0, :12] @ target.lm_head.T
    torch.testing.assert_close(logits.log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_conversations_follow_the_template_and_learnt_tokens_are_the_answers(corpus, tokenizer):
    starts = torch.nonzero(corpus.positions[0] == 0).flatten().tolist()
    assert len(starts) > 2
    for first, last in itertools.pairwise(starts):
        text = tokenizer.decode(corpus.token_ids[0, first:last].tolist(), skip_special_tokens=False)
        answer = text.split("<|assistant|>", 1)[1]
        learnt = corpus.token_ids[0, first:last][corpus.learnt[0, first:last]].tolist()
        assert tokenizer.decode(learnt, skip_special_tokens=False) == answer


@pytest.mark.parametrize("hard_share", [0.0, 0.3, 1.0])
def test_the_fused_gradient_is_autograds(hard_share):
    read, rows, predicted = torch.randn(5, 4), torch.randn(7, 4), torch.randn(3, 7)
    places = torch.tensor([0, 1, 1, 2, 0])
    weight = torch.tensor([0.1, 0.0, 0.4, 0.3, 0.2])
    leaves = [read.clone().requires_grad_(), rows.clone().requires_grad_()]
    total, hits = head_loss(*leaves, targets_of(predicted, rows, hard_share), places, weight)
    total.backward()
    labels = predicted[places]
    plain = [read.clone().requires_grad_(), rows.clone().requires_grad_()]
    logits = plain[0] @ plain[1].T
    soft = torch.nn.functional.cross_entropy(logits, labels.softmax(-1), reduction="none")
    hard = torch.nn.functional.cross_entropy(logits, labels.argmax(-1), reduction="none")
    expected = (weight * (hard_share * hard + (1 - hard_share) * soft)).sum()
    expected.backward()
    torch.testing.assert_close(total, expected)
    assert torch.equal(hits, logits.argmax(-1) == labels.argmax(-1))
    for ours, theirs in zip(leaves, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_drafts_share_the_targets_predictions_where_they_look_at_the_same_text():
    places, rows = labels_of(torch.tensor([4, 5, 9]), 2)
    assert places.tolist() == [5, 6, 7, 10, 11]
    assert rows.tolist() == [[0, 1], [1, 2], [3, 4]]
    roots = torch.cat([torch.arange(40, 56), torch.tensor([7, 8, 90, 20, 21, 27])])
    places, rows = labels_of(roots, 6)
    assert torch.equal(places[rows], roots.unsqueeze(1) + torch.arange(1, 7))
    assert len(places) < 22 + 5 * 6


def test_a_batch_is_runs_of_the_corpus_and_a_pass_takes_no_root_twice(corpus, target):
    training = new_training(corpus, target)
    batches = len(training._roots) // SETTINGS.run_len // (SETTINGS.batch_positions // SETTINGS.run_len)
    taken = torch.cat([training._batch(index) for index in range(batches)])
    assert len(taken) == len(taken.unique()) == batches * SETTINGS.batch_positions
    first = torch.searchsorted(training._roots, taken[:: SETTINGS.run_len].contiguous())
    runs = training._roots[first.unsqueeze(1) + torch.arange(SETTINGS.run_len)]
    assert torch.equal(taken.view_as(runs), runs)


def test_data_without_answers_are_refused(corpus, target):
    silent = Corpus(corpus.token_ids, corpus.positions, torch.zeros_like(corpus.learnt), corpus.hidden)
    with pytest.raises(EnginewrightError, match="none of 960 tokens is in an answer"):
        new_training(silent, target)


def test_a_killed_training_goes_on_to_the_same_bits(corpus, target, tmp_path):
    whole = train(new_training(corpus, target), tmp_path / "whole.pt", (1.0, 2.0, 3.0))

    class KilledError(Exception):
        pass

    def killed(step, metrics):
        if step == 4:
            raise KilledError

    values = iter((1.0, 2.0))
    kept = []
    with pytest.raises(KilledError):
        run_training(new_training(corpus, target), tmp_path / "cut.pt", 2, killed, lambda _: next(values), kept.append)
    assert len(kept) == 1
    resumed = new_training(corpus, target)
    again = train(resumed, tmp_path / "cut.pt", (2.0, 3.0))
    assert resumed.step_index == SETTINGS.num_steps
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_head_of_a_training_that_was_cut_short_is_whole(corpus, target, tmp_path):
    training = new_training(corpus, target)
    curves = tmp_path / "curves.jsonl"
    rows = [{"step": step, "loss": 3.0, "top1": [0.5, 0.4], "accepted_length": 2 - step / 4} for step in (2, 4)]
    curves.write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = HeadDescription(training.config, "tiny", "0" * 64, "")
    write_trained(tmp_path, description, {"data": corpus.digest()}, training.tensors(torch.float32), curves)
    described, tensors = read_head(tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe == {"data": corpus.digest(), "best_step": 2}
    assert described.recipe_digest == json_digest(recipe)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert torch.equal(tensors["drafter.rnn_w.weight"], training.ema["drafter.rnn_w.weight"])


def test_the_digest_of_the_data_is_over_ids_positions_and_roles_in_this_order(corpus, target, tokenizer):
    parts = [corpus.token_ids.numpy().astype("<i4"), corpus.positions.numpy().astype("<i2"), corpus.learnt.numpy()]
    assert corpus.digest() == hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    assert write_corpus(target, tokenizer, seed=3).digest() == corpus.digest()
    assert write_corpus(target, tokenizer, seed=4).digest() != corpus.digest()


def test_the_best_head_is_kept_not_the_last(corpus, target, tmp_path):
    best = train(new_training(corpus, target), tmp_path / "a.pt", (1.0, 9.0, 3.0))
    last = train(new_training(corpus, target), tmp_path / "b.pt", (1.0, 2.0, 3.0))
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_hidden_states_from_memory_disk_or_computed_again_train_the_same(corpus, target, tmp_path):
    bare = Corpus(corpus.token_ids, corpus.positions, corpus.learnt)
    kept = with_hidden(bare, target, 2**30, tmp_path / "hidden.bin")
    assert with_hidden(bare, target, 10, tmp_path / "none.bin").hidden is None
    first = [float(new_training(data, target).step()[0]) for data in (corpus, kept, bare)]
    assert first == pytest.approx([first[0]] * 3, rel=1e-4)


def test_a_tree_accepts_its_longest_path_along_the_continuation():
    tree = DraftTree(
        token_ids=torch.tensor([[SEE, THE, CAT, DOG, SAT, RAN, -1]]),
        parents=torch.tensor([[0, 0, 1, 1, 2, 2, 0]]),
        depths=torch.tensor([[0, 1, 2, 2, 3, 3, 0]]),
        ancestors=torch.tensor([[1, 3, 7, 11, 23, 39, 65]]),
    )
    follows = {(THE, CAT, RAN): 3, (THE, DOG, RAN): 2, (THE, SAT, RAN): 1, (CAT, DOG, RAN): 0, (THE, CAT, -1): 2}
    for continuation, depth in follows.items():
        assert accepted_depths(tree, torch.tensor([continuation])).tolist() == [depth]


def test_a_perfect_drafter_is_measured_at_its_depth(target, tokenizer):
    prompts = [("chat", tokenizer.encode_chat([{"role": "user", "content": "hello"}])), ("code", tokenizer.encode("x"))]
    paths = greedy_paths(target, prompts, 25, frozenset())

    class Oracle:
        def propose(self, context, shape):
            at = context.positions.unsqueeze(1) + torch.arange(shape.num_nodes)
            ids = context.history.gather(1, at)
            index = torch.arange(shape.num_nodes).expand_as(ids)
            return DraftTree(ids, (index - 1).clamp(min=0), index, (1 << (index + 1)) - 1)

    found = walk_paths(Oracle(), paths, TreeShape(4, 1, 3))
    assert found.accepted_length == {"chat": 4.0, "code": 4.0, "mean": 4.0}  # 24 tokens in 6 steps
    assert found.acceptance == (1.0, 1.0, 1.0)


def test_training_raises_the_accepted_length(corpus, target, tokenizer):
    training = new_training(corpus, target)
    ids = tokenizer.encode_chat([{"role": "user", "content": "Write"}])
    paths: list[GreedyPath] = greedy_paths(target, [("chat", ids)], 40, frozenset())

    def measure():
        drafter = make_redrafter(training.config, training.tensors(torch.float32), target.embedding, target.lm_head,
                                 "torch")  # fmt: skip
        return walk_paths(drafter, paths, TreeShape(32, 4, 3)).accepted_length["mean"]

    losses = [float(training.step()[0]) for _ in range(40)]
    assert losses[-1] < losses[0]
    assert measure() >= 1.0


def recurrent_states(dialect, weights, embedded):
    """The states after each token, (K, P, H), by the formulas of the two dialects; embedded (P, K, H)."""
    w, u, b = (weights[f"drafter.{name}"].double() for name in ("rnn_w.weight", "rnn_u.weight", "rnn_u.bias"))
    states, state = [], torch.zeros_like(embedded[:, 0])
    for step, x in enumerate(embedded.unbind(1)):
        if dialect == "apple":
            state = torch.nn.functional.silu(x @ w.T + state @ u.T + b)
        else:  # no activation, and no bias at the first token
            state = x @ w.T + (state @ u.T + b if step else 0)
        states.append(state)
    return states


@pytest.mark.parametrize("dialect", ["apple", "tensorrt_llm"])
def test_a_head_trains_on_the_loss_of_its_dialects_formulas(corpus, target, dialect):
    config = HeadConfig(32, 32, 1, 260, 64, dialect=dialect)
    vocab_ids = draft_vocabulary(corpus, 260, 64, frozenset([EOS]))
    settings = LoopSettings(num_steps=1, batch_positions=40, future_tokens=3, hard_share=0.0, depth_decay=1.0)
    training = Training(config, vocab_ids, corpus, target, settings)
    with torch.no_grad():  # biases start at zero, where the dialects' bias rules could not be told apart
        for parameter in training.parameters.values():
            parameter += 0.1 * torch.randn_like(parameter)
    weights = {name: x.detach().double() for name, x in training.parameters.items()}
    roots = training._batch(0)
    ids, positions = (
        x.flatten()[roots.unsqueeze(1) + torch.arange(5)].long() for x in (corpus.token_ids, corpus.positions)
    )
    hidden = corpus.hidden.flatten(0, 1)[roots.unsqueeze(1) + torch.arange(4)].double()
    rows = target.lm_head[vocab_ids].double()
    losses = []
    for step, state in enumerate(recurrent_states(dialect, weights, target.embedding[ids[:, 1:4]].double())):
        y = torch.cat([hidden[:, 0], state], 1) @ weights["drafter.input_proj.weight"].T
        y = y + weights["drafter.input_proj.bias"]
        block = y @ weights["drafter.layers.0.linear.weight"].T + weights["drafter.layers.0.linear.bias"]
        logits = (y + torch.nn.functional.silu(block)) @ rows.T
        loss = torch.nn.functional.cross_entropy(logits, (hidden[:, step + 1] @ rows.T).softmax(-1), reduction="none")
        losses.append(loss[positions[:, step + 2] == positions[:, 0] + step + 2].mean())
    torch.testing.assert_close(training.step()[0].double(), torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_texts_are_packed_with_their_own_positions():
    packed = pack_texts([[1, 2, 3], [4, 5, 6, 7], [8]], 4)
    assert packed.token_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert packed.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]


def test_evaluation_prompts_are_balanced_and_not_among_the_openings():
    entries = json.loads(PROMPTS_FILE.read_text(encoding="utf-8"))
    openings = json.loads(OPENINGS_FILE.read_text(encoding="utf-8"))
    counts = {kind: sum(entry["kind"] == kind for entry in entries) for kind in openings}
    assert counts == dict.fromkeys(("chat", "prose", "code", "reasoning"), 18)
    # An opening may be how a prompt begins, but never so much of it that the prompt would be in the data.
    for text in (entry["text"] for entry in entries):
        for opening in (opening for kind in openings.values() for opening in kind):
            assert not (text.startswith(opening) and len(opening) > 0.6 * len(text)), (text, opening)


def test_a_step_that_two_builds_reported_is_one_point_of_a_curve(tmp_path):
    rows = [{"step": 2, "loss": 4.0, "top1": [0.5, 0.25], "accepted_length": 1.5},
            {"step": 4, "loss": 3.0, "top1": [0.6, 0.3], "accepted_length": 1.75}]  # fmt: skip
    (tmp_path / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[1]]))
    assert read_curves(tmp_path / "curves.jsonl") == {
        "train_loss": [(2, 4.0), (4, 3.0)], "held_out_accepted_length": [(2, 1.5), (4, 1.75)],
        "train_top1_1": [(2, 0.5), (4, 0.6)], "train_top1_2": [(2, 0.25), (4, 0.3)],
    }  # fmt: skip
