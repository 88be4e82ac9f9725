"""Tokens as bytes and text: byte-level vocabularies, and those with byte tokens and a mark for a space."""

import tokenizers

from runtime.server.tokens import TokenTexts


class Spaced:
    """As Llama 2's: `▁` for a space, `<0x0A>` for a byte."""

    def __init__(self):
        vocabulary = {"▁the": 0, "cat": 1, "<0x0A>": 2, "<0xE2>": 3}
        self.backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
        self.backend.decoder = tokenizers.decoders.Sequence(
            [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
        )
        self.backend.add_special_tokens(["</s>"])


def test_bytes_of_a_byte_level_text_add_up_to_it(tokenizer):
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("naïve\n☃<|end|>")
    assert b"".join(map(texts.bytes_of, ids)).decode() == "naïve\n☃<|end|>"


def test_a_part_of_a_character_is_named_by_its_bytes(tokenizer):
    texts = TokenTexts(tokenizer)
    assert [texts.name_of(token_id) for token_id in tokenizer.encode("a☃")] == [
        "a",
        *(f"bytes:\\x{b:02x}" for b in "☃".encode()),
    ]


def test_offsets_count_characters_of_the_text(tokenizer):
    texts = TokenTexts(tokenizer)
    # The snowman's character comes with the last of its three bytes; a special token is not part of the text.
    assert texts.offsets(tokenizer.encode("a☃<|end|>b"), 5) == [5, 6, 6, 6, 7, 7]


def test_marks_and_byte_tokens_of_other_vocabularies_are_understood():
    texts = TokenTexts(Spaced())
    assert [texts.bytes_of(token_id) for token_id in range(5)] == [b" the", b"cat", b"\n", b"\xe2", b"</s>"]
