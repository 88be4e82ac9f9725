"""Makes the verification reference: fp32 transformers on the converted weights, and transformers' own error beside it.

Takes token ids: it knows no tokenizer. Comparing an engine with the result is runtime/quality.py's business.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from transformers import PreTrainedModel as Model

from pipelines.quality.greedy import forced_logits, greedy_tokens
from pipelines.quality.hf_model import load_converted
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.reference import Baseline, Reference, cut_windows
from runtime.quality import TopLogits, compare_logits, full_kl, token_nll
from runtime.spec import ModelSpec

# fraction done in 0..1, and what is being done
ReportProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class ReferenceSizes:
    """num_tokens to continue each prompt by, top_k logits to keep of each; the text's window; prompts a batch."""

    num_tokens: int = 64
    top_k: int = 32
    text_window: int = 512
    batch_size: int = 16


def make_reference(
    checkpoint: Checkpoint,
    prompts: list[list[int]],
    text_ids: list[int],
    engine_dtype: str,
    sizes: ReferenceSizes,
    report: ReportProgress,
) -> Reference:
    """Generate, record and compare; the same inputs on the same machine give the same reference.

    Raises:
        EnginewrightError: an empty prompt, an id outside the vocabulary, or a prompt too long for the model.
    """
    _check_inputs(checkpoint.spec, prompts, text_ids, sizes)
    report(0.0, "reference: loading fp32 weights")
    model = load_converted(checkpoint, torch.float32)
    tokens, logits = _continue(model, prompts, sizes, report)
    window = min(sizes.text_window, checkpoint.spec.max_position_embeddings)
    windows = cut_windows(text_ids, window)
    report(0.7, "reference: perplexity text in fp32")
    nll = text_nll(model, windows)
    del model
    report(0.85, f"reference: transformers' own error in {engine_dtype}")
    top = TopLogits.from_logits(logits, sizes.top_k)
    inputs = [prompt + row[:-1].tolist() for prompt, row in zip(prompts, tokens, strict=True)]
    baseline = measure_baseline(checkpoint, engine_dtype, inputs, top, logits, windows)
    report(1.0, "reference: done")
    meta = {"dtype": "float32", "torch": torch.__version__, "transformers": version("transformers")}
    return Reference(prompts, top, text_ids, window, nll, baseline, meta)


def _continue(
    model: Model, prompts: list[list[int]], sizes: ReferenceSizes, report: ReportProgress
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Per prompt: its continuation (N,) int64 and the logits (N, V) float32 that chose it."""
    tokens, logits = [], []
    for start in range(0, len(prompts), sizes.batch_size):
        report(0.05 + 0.65 * start / len(prompts), f"reference: greedy tokens from prompt {start + 1}/{len(prompts)}")
        batch = prompts[start : start + sizes.batch_size]
        for prompt, draft in zip(batch, greedy_tokens(model, batch, sizes.num_tokens), strict=True):
            settled, rows = settle_tokens(model, prompt, draft)
            tokens.append(settled)
            logits.append(rows)
            report(
                0.05 + 0.65 * len(tokens) / len(prompts), f"reference: logits of prompt {len(tokens)}/{len(prompts)}"
            )
    return tokens, logits


def settle_tokens(model: Model, prompt: list[int], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a drafted greedy continuation the argmax of its own unpadded, teacher-forced pass.

    A padded batch with a cache rounds differently and may flip a near tie. There the teacher-forced choice stands and
    the rest is drafted again. Every pass has the same length, so rows settled once stay as they are: the loop ends.

    Returns:
        tokens (N,) int64, and logits (N, V) float32 of which they are the argmax.
    """
    while True:
        logits = forced_logits(model, prompt + tokens[:-1].tolist(), len(tokens)).float()
        choices = logits.argmax(-1)
        flips = (choices != tokens).nonzero()
        if not len(flips):
            return tokens, logits
        settled = choices[: int(flips[0, 0]) + 1]
        drafted = greedy_tokens(model, [prompt + settled.tolist()], len(tokens) - len(settled))[0]
        tokens = torch.cat([settled, drafted])


def measure_baseline(
    checkpoint: Checkpoint,
    dtype: str,
    inputs: list[list[int]],
    top: TopLogits,
    logits: list[torch.Tensor],
    windows: list[list[int]],
) -> Baseline:
    """Run transformers in the engine's dtype along the reference's tokens (`inputs`) and compare.

    In fp32 that would be the reference itself: eager attention then shows how much mere summation order changes.
    """
    attention = "eager" if dtype == "float32" else "sdpa"
    model = load_converted(checkpoint, getattr(torch, dtype), attention)
    divergences = []

    def rows() -> Iterator[torch.Tensor]:
        for ids, expected in zip(inputs, logits, strict=True):
            row = forced_logits(model, ids, len(expected)).float()
            divergences.append(full_kl(expected, row))
            yield row

    figures = compare_logits(top, rows())
    mean_kl = float(torch.cat(divergences).mean())
    return Baseline(dtype, attention, figures, mean_kl, text_nll(model, windows))


def text_nll(model: Model, windows: list[list[int]]) -> float:
    """Mean negative log-likelihood in nats of every token but the first of each window."""
    losses = [token_nll(forced_logits(model, window, len(window))[:-1], torch.tensor(window[1:])) for window in windows]
    return float(torch.cat(losses).mean())


def _check_inputs(spec: ModelSpec, prompts: list[list[int]], text_ids: list[int], sizes: ReferenceSizes) -> None:
    if not prompts or not all(prompts):
        raise EnginewrightError("verification needs at least one prompt, and no empty one")
    if len(text_ids) < 2 or sizes.text_window < 2:
        raise EnginewrightError(
            f"the perplexity text has {len(text_ids)} tokens in windows of {sizes.text_window}; 2 is the least"
        )
    limit = spec.max_position_embeddings - sizes.num_tokens
    if max(map(len, prompts)) > limit:
        raise EnginewrightError(
            f"a verification prompt has {max(map(len, prompts))} tokens; with {sizes.num_tokens} to generate, "
            f"this model's context holds {limit}"
        )
    highest = max(max(ids) for ids in [*prompts, text_ids])
    if highest >= spec.vocab_size:
        raise EnginewrightError(f"token id {highest} is outside the vocabulary of {spec.vocab_size}; wrong tokenizer?")
