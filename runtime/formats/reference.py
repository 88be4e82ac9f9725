"""The verification reference that travels in a bundle: prompts, greedy tokens, top logits, and a text for perplexity.

One safetensors file of about 1 MB, so that a target which cannot run where it was built is verified where it can.
Making one needs transformers (pipelines/quality/reference.py); reading one and comparing with it does not.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.errors import EnginewrightError
from runtime.quality import LogitFigures, TopLogits

REFERENCE_FILE = "reference.safetensors"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Baseline:
    """The error that transformers itself makes in the engine's dtype on the same weights: what ours is held against.

    full_kl_nats is the mean KL over the whole vocabulary; `figures` use the top K tokens and a bucket, as the engine's.
    text_nll_nats is the mean per predicted token of the perplexity text.
    """

    dtype: str
    attention: str
    figures: LogitFigures
    full_kl_nats: float
    text_nll_nats: float


@dataclass(frozen=True, eq=False)
class Reference:
    """What fp32 transformers computes from the converted weights.

    prompts: P lists of token ids
    top: logits along each prompt's greedy continuation, which ignores end-of-sequence tokens; top.tokens is it
    text_ids, text_window: the perplexity text, cut into windows of that many tokens (see `text_windows`)
    text_nll_nats: mean negative log-likelihood per predicted token of the text
    meta: dtype and library versions, for people
    """

    prompts: list[list[int]]
    top: TopLogits
    text_ids: list[int]
    text_window: int
    text_nll_nats: float
    baseline: Baseline
    meta: Mapping[str, str]

    def forced_inputs(self, prompt: int) -> list[int]:
        """Token ids whose last N logit rows predict the N tokens of the continuation: prompt + tokens[:-1]."""
        tokens: list[int] = self.top.tokens[prompt, :-1].tolist()
        return self.prompts[prompt] + tokens

    def text_windows(self) -> list[list[int]]:
        """Consecutive windows of the text, each read from an empty context: its first token is not predicted."""
        return cut_windows(self.text_ids, self.text_window)

    def save(self, path: Path) -> None:
        """Write one safetensors file; equal references give equal bytes."""
        from safetensors.torch import save_file

        tensors = {
            "top_ids": self.top.ids,
            "top_logits": self.top.values,
            "logsumexp": self.top.logsumexp,
            "tokens": self.top.tokens,
            "prompt_ids": torch.tensor([token for prompt in self.prompts for token in prompt], dtype=torch.int32),
            "prompt_lens": torch.tensor([len(prompt) for prompt in self.prompts], dtype=torch.int32),
            "text_ids": torch.tensor(self.text_ids, dtype=torch.int32),
        }
        fields = {
            "schema_version": SCHEMA_VERSION,
            "text_window": self.text_window,
            "text_nll_nats": self.text_nll_nats,
            "baseline": asdict(self.baseline),
            "meta": dict(self.meta),
        }
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"enginewright": json.dumps(fields)})

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read and check a file that `save` wrote.

        Raises:
            EnginewrightError: unreadable, of another schema, or its parts do not fit each other.
        """
        fields, tensors = _read(path)
        try:
            if fields["schema_version"] != SCHEMA_VERSION:
                raise EnginewrightError(
                    f"{path}: reference schema {fields['schema_version']}, this version reads {SCHEMA_VERSION}; "
                    "verify the engine again"
                )
            baseline = dict(fields["baseline"])
            lens = tensors["prompt_lens"].tolist()
            reference = cls(
                prompts=[ids.tolist() for ids in torch.split(tensors["prompt_ids"], lens)],
                top=TopLogits(*(tensors[name] for name in ("top_ids", "top_logits", "logsumexp", "tokens"))),
                text_ids=tensors["text_ids"].tolist(),
                text_window=int(fields["text_window"]),
                text_nll_nats=float(fields["text_nll_nats"]),
                baseline=Baseline(**{**baseline, "figures": LogitFigures(**baseline["figures"])}),
                meta=dict(fields["meta"]),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _broken(path, f"a part is missing or malformed ({error})") from error
        _check(reference, path)
        return reference


def cut_windows(text_ids: list[int], window: int) -> list[list[int]]:
    """Consecutive windows; a last one with nothing to predict (a single token) is left out."""
    cuts = [text_ids[start : start + window] for start in range(0, len(text_ids), window)]
    return [cut for cut in cuts if len(cut) > 1]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {}).get("enginewright", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise _broken(path, f"unreadable ({error})") from error
    if not isinstance(fields, dict):
        raise _broken(path, "not a verification reference")
    return fields, tensors


def _check(reference: Reference, path: Path) -> None:
    top, num_prompts = reference.top, len(reference.prompts)
    if top.ids.dim() != 3 or top.ids.shape[0] != num_prompts or top.ids.shape[2] < 2 or not top.ids.numel():
        raise _broken(path, f"top_ids has shape {tuple(top.ids.shape)} for {num_prompts} prompts")
    if top.values.shape != top.ids.shape or not top.tokens.shape == top.logsumexp.shape == top.ids.shape[:2]:
        raise _broken(path, "top_ids, top_logits, logsumexp and tokens differ in shape")
    if not bool(top.values.isfinite().all()) or not bool(top.logsumexp.isfinite().all()):
        raise _broken(path, "a logit is not finite")
    if not bool(((top.ids == top.tokens[..., None]) & (top.values == top.values[..., :1])).any(-1).all()):
        raise _broken(path, "a token of the continuation is not the most likely one")
    if not all(reference.prompts) or reference.text_window < 2:
        raise _broken(path, f"an empty prompt, or a text window of {reference.text_window} tokens")


def _broken(path: Path, what: str) -> EnginewrightError:
    return EnginewrightError(f"{path}: {what}; verify the engine again to remake it")
