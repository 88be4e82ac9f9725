"""From a head's files and its target's checkpoint to a drafter."""

import logging
from pathlib import Path

import torch

from plugins.draft_pass import DraftWeights
from plugins.draft_pass.cuda import DraftPass
from plugins.draft_pass.plan import HeadSizes, head_refusal
from plugins.linear import LinearKind
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import EMBEDDING, LM_HEAD, Checkpoint
from runtime.spec import ModelSpec
from runtime.speculation.redrafter.drafter import ReDrafter
from runtime.speculation.redrafter.head import DraftHead
from runtime.speculation.redrafter.head_file import PREFIX, VOCAB_IDS, HeadConfig, read_head

_log = logging.getLogger("enginewright.speculation")


def load_redrafter(
    folder: Path, checkpoint: Checkpoint, dtype: torch.dtype, linear: LinearKind, device: str = "cpu"
) -> ReDrafter:
    """Load the head in `folder` for the target `checkpoint`.

    Raises:
        EnginewrightError: a damaged file, a head for another target, or weights that `linear` cannot run.
    """
    description, tensors = read_head(folder)
    check_fits(folder, description.config, checkpoint.spec)
    names = (EMBEDDING,) if checkpoint.spec.tied_head else (EMBEDDING, LM_HEAD)
    target = {name: tensor for name, tensor in checkpoint.tensors() if name in names}
    embedding = target[EMBEDDING].to(device, dtype, copy=True)
    return make_redrafter(description.config, tensors, embedding, target[names[-1]].to(device, dtype), linear)


def make_redrafter(
    config: HeadConfig,
    tensors: dict[str, torch.Tensor],
    embedding: torch.Tensor,
    target_head: torch.Tensor,
    linear: LinearKind,
) -> ReDrafter:
    """Make a drafter of a head's tensors, in the dtype and on the device of `embedding`.

    On a GPU it drafts in one launch where the head can be; where not, through torch, which is logged.

    Args:
        tensors: as stored, with the draft vocabulary.
        embedding: (V, H), the target's input embedding; kept.
        target_head: (V, H), the target's LM head; its rows serve a tied head.

    Raises:
        EnginewrightError: weights that `linear` cannot run.
    """
    vocab_ids = tensors[VOCAB_IDS].to(embedding.device, torch.int64)
    weights = {name: tensor.to(embedding) for name, tensor in tensors.items() if name != VOCAB_IDS}
    rows = target_head if config.tied_head else weights[PREFIX + "lm_head.weight"]
    lm_head = rows[vocab_ids].to(embedding.dtype)
    try:
        head = DraftHead(config, weights, lm_head, linear)
        draft_pass = _draft_pass(config, weights, embedding, lm_head, vocab_ids) if embedding.is_cuda else None
    except ValueError as error:
        raise EnginewrightError(f"this machine cannot run the draft head: {error}") from error
    return ReDrafter(head, embedding, vocab_ids, draft_pass)


def _draft_pass(
    config: HeadConfig,
    tensors: dict[str, torch.Tensor],
    embedding: torch.Tensor,
    lm_head: torch.Tensor,
    vocab_ids: torch.Tensor,
) -> DraftPass | None:
    sizes = HeadSizes(config.hidden_size, config.exit_dim, config.num_blocks, len(vocab_ids), len(embedding))
    refusal = head_refusal(sizes, embedding.dtype)
    if refusal is not None:
        _log.warning("the draft head runs through torch, many times slower: %s", refusal)
        return None
    return DraftPass(draft_weights(config, tensors, embedding, lm_head, vocab_ids))


def draft_weights(
    config: HeadConfig,
    tensors: dict[str, torch.Tensor],
    embedding: torch.Tensor,
    lm_head: torch.Tensor,
    vocab_ids: torch.Tensor,
) -> DraftWeights:
    """Name a head's tensors as its formulas do.

    Args:
        lm_head: (V_draft, E), its rows for `vocab_ids`.
    """

    def take(name: str) -> torch.Tensor:
        return tensors[PREFIX + name]

    context_proj, state_proj = take("input_proj.weight").split(config.hidden_size, dim=1)
    blocks = [f"layers.{block}.linear" for block in range(config.num_blocks)]
    return DraftWeights(
        embedding=embedding,
        context_proj=context_proj,
        context_bias=take("input_proj.bias"),
        rnn_w=take("rnn_w.weight"),
        rnn_u=take("rnn_u.weight"),
        rnn_bias=take("rnn_u.bias"),
        state_proj=state_proj,
        blocks=_stacked([take(f"{name}.weight") for name in blocks], embedding, config.exit_dim, config.exit_dim),
        block_biases=_stacked([take(f"{name}.bias") for name in blocks], embedding, config.exit_dim),
        lm_head=lm_head,
        vocab_ids=vocab_ids,
        has_silu=config.dialect == "apple",
    )


def _stacked(tensors: list[torch.Tensor], like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.stack(tensors) if tensors else like.new_empty(0, *shape)


def check_fits(folder: Path, config: HeadConfig, spec: ModelSpec) -> None:
    """Compare a head's sizes with its target's.

    Raises:
        EnginewrightError: they differ.
    """
    for name in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(config, name), getattr(spec, name)
        if ours != theirs:
            raise EnginewrightError(
                f"{folder}: a draft head for {name} {ours}, but this model has {theirs}; train one for it (draft=train)"
            )
