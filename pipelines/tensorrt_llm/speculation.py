"""What drafts in TensorRT-LLM, of what drafts in the bundle; where it is nothing, why."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.target_config import TensorrtLlmTargetConfig
from pipelines.tensorrt_llm.checkpoint_config import Beams
from pipelines.tensorrt_llm.checks import check_redrafter
from pipelines.tensorrt_llm.versions import flow_of
from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_FILE
from runtime.spec import ModelSpec
from runtime.speculation.redrafter.head_file import HeadConfig, read_description


@dataclass(frozen=True)
class Speculation:
    """`kind` is none, redrafter, ngram or model; `reason` is why the bundle's own is left out, "" where it is not."""

    kind: str
    reason: str = ""
    head: HeadConfig | None = None
    beams: Beams | None = None


def choose_speculation(config: TensorrtLlmTargetConfig, spec: ModelSpec, draft_dir: Path) -> Speculation:
    """Decide by the version and by the drafter of `draft_dir`.

    Raises:
        EnginewrightError: a head that this version cannot run was made for it or insisted on.
    """
    drafter = json.loads((draft_dir / DRAFT_FILE).read_text(encoding="utf-8"))["drafter"]
    if config.redrafter == "on" and drafter != "redrafter":
        raise EnginewrightError(
            f"target.tensorrt_llm.redrafter is 'on', and the bundle's drafter is {drafter!r}; train a head with "
            "draft=train draft.train.dialect=tensorrt_llm"
        )
    if drafter == "redrafter":
        return _redrafter(config, spec, draft_dir)
    if drafter in ("ngram", "model") and flow_of(config.version) == "build":
        return Speculation("none", f"draft={drafter} drafts from version 1.3 on, not in engines of {config.version}")
    return Speculation(drafter)


def _redrafter(config: TensorrtLlmTargetConfig, spec: ModelSpec, draft_dir: Path) -> Speculation:
    """A head of the right dialect was trained for TensorRT-LLM: it is never left out unasked."""
    head = read_description(draft_dir).config
    if config.redrafter == "off":
        return Speculation("none", "target.tensorrt_llm.redrafter=off")
    if config.redrafter == "auto" and head.dialect != "tensorrt_llm" and flow_of(config.version) == "serve":
        return Speculation(
            "none", f"TensorRT-LLM {config.version} has no ReDrafter; draft=ngram and draft=model it has"
        )
    if config.redrafter == "auto" and head.dialect != "tensorrt_llm":
        return Speculation(
            "none",
            f"the bundle's draft head is of the dialect {head.dialect}, which TensorRT-LLM does not compute; "
            "draft=train draft.train.dialect=tensorrt_llm trains one that it does",
        )
    return Speculation("redrafter", head=head, beams=check_redrafter(config, spec, head))
