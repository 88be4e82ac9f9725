"""The conversion report: the original source against the converted weights, both run by transformers in fp32.

What separates them is conversion alone: renaming, fusing, and rounding to the checkpoint's dtype. It gates nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel as Model

from pipelines.quality.greedy import forced_logits
from pipelines.quality.hf_model import load_converted, load_source
from pipelines.quality.reference import ReportProgress, text_nll
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.reference import Reference
from runtime.quality import full_kl


@dataclass(frozen=True)
class ConversionReport:
    """mean_kl_nats, max_kl_nats: KL(source || converted) over the whole vocabulary, along the reference's tokens.

    greedy_agreement: share of those positions where both have the same argmax.
    *_text_nll_nats: mean per predicted token of the reference's perplexity text.
    weight_errors: by tensor kind, the largest over layers of norm(converted - source) / norm(source).
    """

    mean_kl_nats: float
    max_kl_nats: float
    greedy_agreement: float
    source_text_nll_nats: float
    converted_text_nll_nats: float
    weight_errors: dict[str, float]


def conversion_report(
    fetched: Path, checkpoint: Checkpoint, reference: Reference, report: ReportProgress
) -> ConversionReport:
    """Compare the fetch stage's folder with the checkpoint made from it."""
    report(0.0, "conversion: loading the source and the converted weights in fp32")
    source, converted = load_source(fetched), load_converted(checkpoint, torch.float32)
    errors = weight_errors(source, converted)
    num_prompts, num_tokens = reference.top.tokens.shape
    divergences, agreements = [], []
    for prompt in range(num_prompts):
        report(0.3 + 0.4 * prompt / num_prompts, f"conversion: prompt {prompt + 1}/{num_prompts}")
        ids = reference.forced_inputs(prompt)
        expected, logits = (forced_logits(model, ids, num_tokens) for model in (source, converted))
        divergences.append(full_kl(expected, logits))
        agreements.append(expected.argmax(-1) == logits.argmax(-1))
    report(0.7, "conversion: perplexity text on the source")
    kl = torch.cat(divergences)
    result = ConversionReport(
        mean_kl_nats=float(kl.mean()),
        max_kl_nats=float(kl.max()),
        greedy_agreement=float(torch.cat(agreements).double().mean()),
        source_text_nll_nats=text_nll(source, reference.text_windows()),
        converted_text_nll_nats=reference.text_nll_nats,
        weight_errors=errors,
    )
    report(1.0, "conversion: done")
    return result


def weight_errors(source: Model, converted: Model) -> dict[str, float]:
    """The largest relative error of each tensor kind (a name without its layer), e.g. `self_attn.q_proj.weight`."""
    errors: dict[str, float] = {}
    expected = dict(source.named_parameters())
    with torch.inference_mode():
        for name, tensor in converted.named_parameters():
            kind = ".".join(part for part in name.split(".") if not part.isdigit()).removeprefix("model.layers.")
            norm = expected[name].norm()
            # A tensor of zeros (an unused bias) has no relative error: report the absolute one.
            error = float((tensor - expected[name]).norm() / (norm if norm else 1.0))
            errors[kind] = max(errors.get(kind, 0.0), error)
    return errors
