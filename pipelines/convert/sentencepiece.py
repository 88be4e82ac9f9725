"""SentencePiece BPE as a tokenizer of the tokenizers library.

SentencePiece merges whichever two neighbours make the token with the highest score; the library wants an ordered list
of merges. The list holds every way to cut a token into two tokens, best score first.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\u2581"


def build(
    vocab: Mapping[str, int], scores: Mapping[str, float], unknown: str | None, add_space_prefix: bool, has_bytes: bool
) -> "Tokenizer":
    """Build the tokenizer.

    vocab: every token's id. scores: of the tokens that merging can make. unknown: the token for what nothing spells.
    has_bytes: characters outside the vocabulary are spelled in tokens `<0x00>` to `<0xFF>`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    model = models.BPE(
        vocab=dict(vocab), merges=merges(scores), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes
    )
    tokenizer = Tokenizer(model)
    spell_spaces = normalizers.Replace(" ", SPACE)
    prefix = [normalizers.Prepend(SPACE)] if add_space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, spell_spaces])
    restore = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", left=1)] if add_space_prefix else []
    tokenizer.decoder = decoders.Sequence([*restore, *strip])
    return tokenizer


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every cut of a token into two, the best token first.

    Among the cuts of one token the longest left part comes first: SentencePiece breaks ties from the left.
    """
    found = [
        (-score, -cut, token[:cut], token[cut:])
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
