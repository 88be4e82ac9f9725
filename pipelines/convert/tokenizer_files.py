"""The checkpoint's tokenizer folder: what it holds, and how it is written. Where it came from is not known here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer and what generation needs to know with it.

    eos_token_ids: every token that ends a generation, the model's own first.
    chat_template: a Jinja template; "" for none. template_origin: the file it came from, for errors.
    """

    tokenizer: "Tokenizer"
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    chat_template: str
    template_origin: str = ""


def check_tokenizer(parts: TokenizerParts, vocab_size: int, origin: str) -> None:
    """Check that a model with `vocab_size` rows of embeddings knows every token id, and that its template works.

    Raises:
        EnginewrightError: it does not, or the template cannot render a user's message.
    """
    num_ids = max(parts.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if num_ids > vocab_size:
        raise EnginewrightError(
            f"{origin}: the tokenizer has {num_ids} tokens but the model's vocabulary {vocab_size}; "
            "they belong to different models, fetch the source again"
        )
    special = {"bos_token_id": parts.bos_token_id, "pad_token_id": parts.pad_token_id}
    special |= {f"eos_token_ids[{index}]": token_id for index, token_id in enumerate(parts.eos_token_ids)}
    for name, token_id in special.items():
        if token_id is not None and not 0 <= token_id < vocab_size:
            raise EnginewrightError(
                f"{origin}: {name} is {token_id} but the model's vocabulary has {vocab_size} tokens; correct it there"
            )

    if parts.chat_template:
        _try_template(parts)


def _try_template(parts: TokenizerParts) -> None:
    """Render what every chat begins with: a template that fails at this would fail at the first user."""
    from runtime.text.chat import ChatTemplate

    try:
        bos = _text(parts, parts.bos_token_id) or ""
        eos = _text(parts, next(iter(parts.eos_token_ids), None)) or ""
        ChatTemplate(parts.chat_template, bos, eos).render([{"role": "user", "content": "Hello!"}])
    except EnginewrightError as error:
        raise EnginewrightError(f"{parts.template_origin}: {error}; correct it there, or remove it") from error


def _text(parts: TokenizerParts, token_id: int | None) -> str | None:
    return None if token_id is None else parts.tokenizer.id_to_token(token_id)


def write_tokenizer(parts: TokenizerParts, folder: Path) -> None:
    """Write the tokenizer folder; equal parts give equal bytes."""
    folder.mkdir()
    parts.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", _library_config(parts))
    _write_json(folder / "generation.json", _generation(parts))
    if parts.chat_template:
        (folder / "chat_template.jinja").write_text(parts.chat_template, encoding="utf-8")


def _generation(parts: TokenizerParts) -> dict[str, object]:
    ids = parts.tokenizer.encode("a", add_special_tokens=True).ids
    return {
        "bos_token_id": parts.bos_token_id,
        "eos_token_ids": list(parts.eos_token_ids),
        "pad_token_id": parts.pad_token_id,
        "add_bos_token": bool(ids) and ids[0] == parts.bos_token_id,
    }


def _library_config(parts: TokenizerParts) -> dict[str, object]:
    """What transformers needs to load the folder as it is."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _text(parts, parts.bos_token_id),
        "eos_token": _text(parts, next(iter(parts.eos_token_ids), None)),
        "pad_token": _text(parts, parts.pad_token_id),
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
