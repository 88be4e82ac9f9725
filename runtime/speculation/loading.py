"""From a bundle's `draft/` folder to a drafter and the policy that sizes its trees."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_FILE
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.draft_graph import DRAFT_GRAPH_FILE
from runtime.formats.engine_plan import EnginePlan
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.speculation.draft_model import ModelDrafter
from runtime.speculation.drafter import Drafter
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.policy import CHAINS, SMALL_TREES, TINY_TREES, AcceptancePrior, TreePolicy
from runtime.speculation.redrafter import load_redrafter
from runtime.speculation.redrafter.head_file import (
    HEAD_FILE,
    TreeStatistics,
    read_description,
    worthwhile,
    worthwhile_on_gpus,
)
from runtime.speculation.redrafter.onnx_head import load_onnx_redrafter
from runtime.speculation.tree import TreeShape


def default_costs_dir() -> Path:
    """The user's cache folder, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "enginewright", "costs")


@dataclass(frozen=True)
class SpeculationOptions:
    """How an engine speculates.

    mode: `off`, `auto`, or a fixed tree `N,W,K`.
    drafter: `bundle` takes the one that the bundle carries, none where it carries none; `ngram` looks the text up.
    costs_dir: where measured costs of this device are kept; None measures them at every load.
    """

    mode: str = "auto"
    drafter: str = "bundle"
    costs_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.drafter not in ("bundle", "ngram"):
            raise EnginewrightError(f"drafter is {self.drafter!r}; it must be bundle or ngram")


class Drafting(NamedTuple):
    """A drafter and the policy that sizes its trees; both None decode plainly."""

    drafter: Drafter | None
    policy: TreePolicy | None


@dataclass(frozen=True)
class LoadedDrafter:
    """A drafter, the trees that suit it and what is known of its acceptance."""

    drafter: Drafter
    candidates: tuple[TreeShape, ...]
    prior: AcceptancePrior


def load_drafter(
    options: SpeculationOptions,
    draft_dir: Path | None,
    checkpoint: Checkpoint,
    plan: EnginePlan,
    device: str,
    engine_dir: Path | None = None,
) -> LoadedDrafter | None:
    """Load what the options ask for; None where that is no drafter. A head whose graph the engine carries runs there.

    Raises:
        EnginewrightError: a damaged folder, a drafter for another model, or one that this machine cannot run.
    """
    if options.mode == "off":
        return None
    if options.drafter == "ngram":
        return LoadedDrafter(NgramDrafter(), CHAINS, AcceptancePrior())
    kind = _kind(draft_dir) if draft_dir is not None else "none"
    if draft_dir is None or kind == "none":
        if options.mode != "auto":
            raise EnginewrightError(
                f"speculation={options.mode} needs a drafter and this bundle carries none; use drafter=ngram, or build "
                "it with one: make engine ARGS='draft=train'"
            )
        return None
    if kind == "ngram":
        return LoadedDrafter(NgramDrafter(), CHAINS, AcceptancePrior())
    if kind == "model":
        return LoadedDrafter(_model_drafter(draft_dir, checkpoint, plan, device), SMALL_TREES, AcceptancePrior())
    graph = engine_dir / DRAFT_GRAPH_FILE if engine_dir is not None else None
    if graph is not None and graph.is_file():
        drafter = load_onnx_redrafter(graph, draft_dir, checkpoint)
    else:
        drafter = load_redrafter(draft_dir, checkpoint, getattr(torch, plan.dtype), plan.linear, device)
    trees = read_description(draft_dir).trees
    if not trees:
        raise EnginewrightError(f"{draft_dir / HEAD_FILE}: no measured trees; train the head again (draft=train)")
    if device.startswith("cuda"):
        candidates = (*TINY_TREES, *SMALL_TREES, *worthwhile_on_gpus(trees))
    else:
        candidates = (*SMALL_TREES, *(tree.shape for tree in worthwhile(trees)))
    return LoadedDrafter(drafter, tuple(dict.fromkeys(candidates)), _head_prior(trees))


def _kind(draft_dir: Path) -> str:
    path = draft_dir / DRAFT_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = fields["drafter"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnginewrightError(f"{path}: says of no drafter ({error!r}); build the bundle again") from error
    if kind not in ("none", "ngram", "model", "redrafter"):
        raise EnginewrightError(f"{path}: drafter {kind!r} is not none, ngram, model or redrafter; use a newer version")
    return str(kind)


def _model_drafter(draft_dir: Path, checkpoint: Checkpoint, plan: EnginePlan, device: str) -> ModelDrafter:
    """A smaller model over blocks that lie as the target's do."""
    dtype = getattr(torch, plan.dtype)
    smaller = Checkpoint(draft_dir)
    decoder = Decoder(smaller, dtype, plan.linear, plan.max_seq_len, device)
    cache = KVCache(smaller.spec, plan.num_blocks, plan.block_size, dtype, device)
    return ModelDrafter(decoder, cache, checkpoint.spec.vocab_size)


def _head_prior(trees: Sequence[TreeStatistics]) -> AcceptancePrior:
    """What was measured when the head was made; the smallest tree speaks for trees that were not."""
    smallest = min(trees, key=lambda tree: tree.num_nodes)
    reached = (1.0, *smallest.acceptance)
    rates = tuple(after / before for before, after in pairwise(reached) if before > 0.0)
    return AcceptancePrior({tree.shape: tree.accepted_length["mean"] for tree in trees}, rates)
