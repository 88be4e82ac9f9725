"""From a head's files and its target's checkpoint to a drafter."""

from pathlib import Path

import torch

from plugins.linear import LinearKind
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import EMBEDDING, LM_HEAD, Checkpoint
from runtime.spec import ModelSpec
from runtime.speculation.redrafter.drafter import ReDrafter
from runtime.speculation.redrafter.head import DraftHead
from runtime.speculation.redrafter.head_file import PREFIX, VOCAB_IDS, HeadConfig, read_head


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
    try:
        head = DraftHead(config, weights, rows[vocab_ids].to(embedding.dtype), linear)
    except ValueError as error:
        raise EnginewrightError(f"this machine cannot run the draft head: {error}") from error
    return ReDrafter(head, embedding, vocab_ids)


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
