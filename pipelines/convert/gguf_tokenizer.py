"""Build the tokenizer that a GGUF file describes under `tokenizer.ggml.*`.

Two kinds: "gpt2" is byte-level BPE with its merges listed; "llama" is SentencePiece BPE, whose merges follow from the
tokens' scores (pipelines/convert/sentencepiece.py).
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pipelines.convert import byte_level, sentencepiece
from pipelines.convert.gguf_file import GgufFile
from pipelines.convert.tokenizer_files import TokenizerParts
from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEY = "tokenizer.ggml."

# Many files name one end token only, a chat model's turn end or the document's end. Whichever is generated, it is over.
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>")


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, one per token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def read_tokenizer(file: GgufFile, vocab_size: int) -> TokenizerParts:
    """Build the tokenizer of a model with `vocab_size` rows of embeddings.

    Raises:
        EnginewrightError: keys are missing or do not fit each other, or the kind is not known.
    """
    tokens: list[str] = file.require(KEY + "tokens", list)
    types: list[int] = file.require(KEY + "token_type", list)
    for key, length in ((KEY + "tokens", len(tokens)), (KEY + "token_type", len(types))):
        if length != vocab_size:
            raise EnginewrightError(
                f"{file.path}: {key} has {length} entries but the embeddings {vocab_size} rows; "
                "convert the model to GGUF again"
            )
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for token_id, token in enumerate(tokens) if vocab[token] != token_id)
        raise EnginewrightError(
            f"{file.path}: token {twice!r} is in {KEY}tokens twice; convert the model to GGUF again"
        )
    tokenizer, adds_bos = _bare_tokenizer(file, vocab, types)
    _add_special_tokens(tokenizer, tokens, types)
    _add_ends(file, tokenizer, tokens, adds_bos)
    return TokenizerParts(
        tokenizer=tokenizer,
        bos_token_id=file.get(KEY + "bos_token_id", int),
        eos_token_ids=_end_token_ids(file, vocab, types),
        pad_token_id=file.get(KEY + "padding_token_id", int),
        chat_template=file.get("tokenizer.chat_template", str, ""),
        template_origin=f"{file.path}: tokenizer.chat_template",
    )


def _bare_tokenizer(file: GgufFile, vocab: dict[str, int], types: list[int]) -> tuple["Tokenizer", bool]:
    """The tokenizer without special tokens, and whether its kind adds BOS where the file does not say."""
    from tokenizers import Tokenizer, decoders, models

    kind = file.require(KEY + "model", str)
    if kind == "llama":
        scores = file.require(KEY + "scores", list)
        space = file.get(KEY + "add_space_prefix", bool, True)
        normal = {token: scores[index] for token, index in vocab.items() if types[index] == TokenType.NORMAL}
        unknown = next((token for token, index in vocab.items() if types[index] == TokenType.UNKNOWN), None)
        return sentencepiece.build(vocab, normal, unknown, space, has_bytes=TokenType.BYTE in types), True
    if kind != "gpt2":
        raise EnginewrightError(f"{file.path}: {KEY}model is {kind!r}; gpt2 and llama are supported")
    rules = byte_level.rules_for(file.require(KEY + "pre", str), str(file.path))
    merges = [tuple(merge.split(" ", 1)) for merge in file.require(KEY + "merges", list)]
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=rules.ignore_merges)
    except Exception as error:  # the library raises plain Exception
        raise EnginewrightError(
            f"{file.path}: {KEY}merges do not fit {KEY}tokens ({error}); convert the model to GGUF again"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = byte_level.normalizer(rules)
    tokenizer.pre_tokenizer = byte_level.pre_tokenizer(rules, file.get(KEY + "add_space_prefix", bool, False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rules.adds_bos


def _add_special_tokens(tokenizer: "Tokenizer", tokens: list[str], types: list[int]) -> None:
    """Control tokens are matched in text and left out of decoded text; user-defined ones are matched only."""
    from tokenizers import AddedToken

    for token, kind in zip(tokens, types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _add_ends(file: GgufFile, tokenizer: "Tokenizer", tokens: list[str], adds_bos: bool) -> None:
    """Make encoding put BOS before and EOS after a text, where the file asks for it."""
    from tokenizers import processors

    ends: dict[str, int] = {}
    template = ["$A"]
    if file.get(KEY + "add_bos_token", bool, adds_bos):
        bos = _token_id(file, "bos_token_id", tokens)
        ends[tokens[bos]] = bos
        template.insert(0, tokens[bos])
    if file.get(KEY + "add_eos_token", bool, False):
        eos = _token_id(file, "eos_token_id", tokens)
        ends[tokens[eos]] = eos
        template.append(tokens[eos])
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ends.items()))


def _token_id(file: GgufFile, name: str, tokens: list[str]) -> int:
    token_id: int = file.require(KEY + name, int)
    if not 0 <= token_id < len(tokens):
        raise EnginewrightError(f"{file.path}: {KEY}{name} is {token_id} but there are {len(tokens)} tokens")
    return token_id


def _end_token_ids(file: GgufFile, vocab: dict[str, int], types: list[int]) -> tuple[int, ...]:
    named: list[Any] = [file.get(KEY + key, int) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    known = [vocab.get(token) for token in END_TOKENS]
    control = [token_id for token_id in known if token_id is not None and types[token_id] == TokenType.CONTROL]
    return tuple(dict.fromkeys([token_id for token_id in named if token_id is not None] + control))
