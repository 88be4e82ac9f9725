"""Draft data and training on a GPU: reproducible, and what the CPU computes."""

from dataclasses import replace

import pytest
import torch

from pipelines.draft.corpus import Corpus
from pipelines.draft.synthesis import Synthesis, SynthesisSettings, make_scripts, synthesise
from pipelines.draft.target import TargetModel
from pipelines.draft.training import LoopSettings, Training, draft_vocabulary
from runtime.speculation.redrafter.head_file import HeadConfig
from tests.runtime.tiny import EOS, SPEC, make_checkpoint, make_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
WIDE = replace(SPEC, hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64, intermediate_size=512)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return TargetModel(make_checkpoint(tmp_path_factory.mktemp("wide"), WIDE), torch.bfloat16, "cuda")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write_corpus(target, tokenizer) -> Corpus:
    settings = SynthesisSettings(96, 150, seed=3, user_tokens=6, answer_tokens=20)
    scripts = make_scripts(tokenizer, ["Write", "def f", ""], target.device)
    return synthesise(Synthesis(target, scripts, frozenset([EOS]), settings), True, lambda done, total: None)


def test_a_seed_gives_the_same_data_again_and_their_hidden_states(target, tokenizer):
    corpus = write_corpus(target, tokenizer)
    assert write_corpus(target, tokenizer).digest() == corpus.digest()
    whole = target.encode(corpus.token_ids.long(), corpus.positions.long())
    # Two orders of summing in bfloat16, whose roundings of 2^-9 large random weights multiply; 0.024 seen.
    error = (whole.float() - corpus.hidden.float()).norm() / whole.float().norm()
    assert error < 0.05


def test_a_step_of_training_is_the_cpus_up_to_its_16_bits(target, tokenizer, tmp_path):
    corpus = write_corpus(target, tokenizer)
    on_cpu = Corpus(*(x.cpu() for x in (corpus.token_ids, corpus.positions, corpus.learnt)), corpus.hidden.cpu())
    cpu_target = TargetModel(make_checkpoint(tmp_path / "wide", WIDE), torch.float32)
    head = HeadConfig(256, 256, 2, WIDE.vocab_size, 128)
    vocab_ids = draft_vocabulary(corpus, WIDE.vocab_size, 128, frozenset([EOS]))
    settings = LoopSettings(num_steps=4, batch_positions=512, future_tokens=3, warmup_steps=2)
    ours, theirs = (Training(head, vocab_ids, *data, settings) for data in ((corpus, target), (on_cpu, cpu_target)))
    for _ in range(3):
        assert torch.equal(ours._batch(ours.step_index), theirs._batch(theirs.step_index))
        torch.testing.assert_close(ours.step().cpu(), theirs.step(), rtol=0.02, atol=0.02)
