"""Whether a model can draft for another."""

from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
from runtime.speculation.draft_model import check_same_tokenizer
from runtime.text.tokenizer import Tokenizer


def check_drafting_model(target: Checkpoint, smaller: Checkpoint, keep: bool) -> None:
    """Check tokens and sizes. Heads of other widths are no hindrance: the ids past the tokenizer's mean nothing.

    Args:
        keep: take a model that is not smaller than the target all the same.

    Raises:
        EnginewrightError: another tokenizer, or as many parameters as the target or more.
    """
    check_same_tokenizer(Tokenizer(target.path / TOKENIZER_DIR), Tokenizer(smaller.path / TOKENIZER_DIR))
    ours, theirs = target.spec.num_parameters, smaller.spec.num_parameters
    if theirs >= ours and not keep:
        raise EnginewrightError(
            f"the draft model has {theirs / 1e6:.1f} M parameters, the target {ours / 1e6:.1f} M; choose a smaller "
            "draft.source, or draft.keep=true to take it all the same"
        )
