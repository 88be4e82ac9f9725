"""The reference is self-consistent, survives its file, and refuses inputs that cannot make one."""

import dataclasses

import pytest
import torch

from pipelines.data import load_prompts, load_text
from pipelines.quality.greedy import forced_logits, greedy_tokens
from pipelines.quality.reference import ReferenceSizes, make_reference, settle_tokens
from runtime.errors import EnginewrightError
from runtime.formats.reference import Reference, cut_windows
from runtime.quality import compare_logits
from tests.pipelines.unified_models import tiny_model, write_checkpoint

PROMPTS = [[5, 6, 7], [9], [20, 21, 22, 23, 24, 25, 26], [3, 1, 4, 1, 5]]
TEXT = [(7 * i) % 96 for i in range(70)]
SIZES = ReferenceSizes(num_tokens=12, top_k=8, text_window=32)


def make(checkpoint, dtype="bfloat16", prompts=PROMPTS, text=TEXT, sizes=SIZES):
    return make_reference(checkpoint, prompts, text, dtype, sizes, lambda fraction, text: None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny_model(), dtype="bfloat16")


def rounded_model():
    """The model whose parameters (not its rotary frequencies) are rounded as the checkpoint's are."""
    model = tiny_model().requires_grad_(False)
    for tensor in model.parameters():
        tensor.copy_(tensor.bfloat16())
    return model


@pytest.fixture(scope="module")
def reference(checkpoint):
    return make(checkpoint)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_padded_cached_greedy_equals_one_full_pass_per_token(family):
    model = tiny_model(family).double()
    tokens = greedy_tokens(model, PROMPTS, 12)
    for prompt, row in zip(PROMPTS, tokens.tolist(), strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(forced_logits(model, ids, 1)[0].argmax()))
        assert row == ids[len(prompt) :]


def test_settling_replaces_a_wrong_draft():
    model = tiny_model().double()
    draft = greedy_tokens(model, PROMPTS[:1], 12)[0]
    wrong = draft.clone()
    wrong[4:] = 0
    tokens, logits = settle_tokens(model, PROMPTS[0], wrong)
    assert torch.equal(tokens, draft)
    assert torch.equal(logits.argmax(-1), tokens)


def test_tokens_are_the_argmax_of_the_recorded_logits(reference):
    assert reference.top.ids.shape == (4, 12, 8)
    assert torch.equal(reference.top.ids[..., 0], reference.top.tokens)
    probabilities = (reference.top.values.double() - reference.top.logsumexp[..., None]).exp().sum(-1)
    assert bool((probabilities < 1).all())


def test_reference_model_itself_is_without_error_and_bf16_is_not(checkpoint, reference):
    model = rounded_model()
    rows = [forced_logits(model, reference.forced_inputs(prompt), 12) for prompt in range(4)]
    figures = compare_logits(reference.top, rows)
    assert figures.max_logit_diff == 0
    assert figures.greedy_agreement == 1
    assert 0 <= figures.max_kl_nats < 1e-12
    baseline = reference.baseline
    assert baseline.dtype == "bfloat16"
    assert 1e-7 < baseline.figures.mean_kl_nats <= baseline.full_kl_nats < 1e-1
    assert baseline.text_nll_nats == pytest.approx(reference.text_nll_nats, rel=0.05)


def test_fp32_baseline_is_rounding_noise(checkpoint):
    baseline = make(checkpoint, "float32").baseline
    assert baseline.attention == "eager"
    assert 0 < baseline.figures.max_logit_diff < 1e-3
    assert baseline.figures.greedy_agreement == 1


def test_text_nll_is_the_mean_over_predicted_tokens(checkpoint, reference):
    model = rounded_model()
    windows = [TEXT[:32], TEXT[32:64], TEXT[64:]]
    assert reference.text_windows() == windows
    losses = []
    for ids in windows:
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses += [-float(log_p[i, token]) for i, token in enumerate(ids[1:])]
    assert reference.text_nll_nats == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert cut_windows(list(range(5)), 2) == [[0, 1], [2, 3]]


def test_file_gives_the_reference_back_and_is_reproducible(tmp_path, checkpoint, reference):
    reference.save(tmp_path / "a")
    make(checkpoint).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Reference.load(tmp_path / "a")
    for name in ("prompts", "text_ids", "text_window", "text_nll_nats", "baseline", "meta"):
        assert getattr(loaded, name) == getattr(reference, name)
    for field in dataclasses.fields(reference.top):
        assert torch.equal(getattr(loaded.top, field.name), getattr(reference.top, field.name))


@pytest.mark.parametrize("field", ["tokens", "values", "ids"])
def test_file_whose_parts_disagree_is_refused(tmp_path, reference, field):
    altered = getattr(reference.top, field).clone()
    altered[1, 2] = altered[1, 2] + 1 if field != "values" else torch.nan
    broken = dataclasses.replace(reference, top=dataclasses.replace(reference.top, **{field: altered}))
    broken.save(tmp_path / "broken")
    with pytest.raises(EnginewrightError, match=r"broken: .*; verify the engine again"):
        Reference.load(tmp_path / "broken")


def test_truncated_missing_and_foreign_files_are_refused(tmp_path, checkpoint, reference):
    reference.save(tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:2000])
    for path in (tmp_path / "half", tmp_path / "absent", checkpoint.weights_path):
        with pytest.raises(EnginewrightError, match="verify the engine again"):
            Reference.load(path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"prompts": [[5], []]}, "no empty one"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[5] * 117]}, "117 tokens; with 12 to generate, this model's context holds 116"),
        ({"prompts": [[96]]}, "token id 96 is outside the vocabulary of 96"),
        ({"text": [4]}, "text has 1 tokens"),
    ],
)
def test_unusable_inputs_are_refused(checkpoint, inputs, message):
    with pytest.raises(EnginewrightError, match=message):
        make(checkpoint, **inputs)


def test_shipped_prompts_and_text():
    prompts = load_prompts(16)
    assert {prompt.kind for prompt in prompts} == {"chat", "code", "reasoning", "prose", "language", "numbers"}
    assert len({prompt.text for prompt in load_prompts(24)}) == 24
    assert 1500 < len(load_text().split()) < 2000
    with pytest.raises(EnginewrightError, match="choose 1 to 24"):
        load_prompts(25)
