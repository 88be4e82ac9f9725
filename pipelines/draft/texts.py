"""The user's own training data: a text file, JSONL, or a data set that the `datasets` library can load."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from runtime.text.tokenizer import Tokenizer

SCHEME = "datasets:"
FORM = "datasets:<name or folder>[:<config>][#<split>]"


class DatasetAddress(NamedTuple):
    name: str  # of a data set on the Hub, or a folder
    config: str | None
    split: str


def parse_dataset(texts: str) -> DatasetAddress | None:
    """The data set that `draft.train.texts` names; None where it is a file.

    Raises:
        EnginewrightError: a part is empty.
    """
    if not texts.startswith(SCHEME):
        return None
    address, has_split, split = texts.removeprefix(SCHEME).partition("#")
    name, has_config, config = address.partition(":")
    if not name or (has_split and not split) or (has_config and not config):
        raise EnginewrightError(f"draft.train.texts is {texts!r}; it must be a file or {FORM}")
    return DatasetAddress(name, config or None, split or "train")


def read_token_ids(texts: str, tokenizer: "Tokenizer") -> list[list[int]]:
    """Every text's token ids, with an end token behind it where the tokenizer has one.

    Raises:
        EnginewrightError: the texts cannot be read, or an entry is neither a text nor a conversation.
    """
    end = sorted(tokenizer.eos_token_ids)[:1]
    address = parse_dataset(texts)
    records = read_file(Path(texts)) if address is None else read_dataset(address)
    try:
        return [encode_record(record, tokenizer) + end for record in records]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EnginewrightError(
            f'{texts}: unreadable ({error!r}); draft.train.texts is a .txt file, .jsonl or {FORM} with "text" or '
            '"messages"'
        ) from error


def encode_record(record: Mapping[str, Any], tokenizer: "Tokenizer") -> list[int]:
    """A text, or a conversation through the chat template, up to the end of its last message.

    A model without a template, and a conversation that ends with the user, get the messages line by line.
    """
    if record.get("text") is not None:
        return tokenizer.encode(record["text"])
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in record["messages"]]
    if tokenizer.has_chat_template and messages[-1]["role"] == "assistant":
        prompt = tokenizer.encode_chat(messages[:-1])
        return prompt + tokenizer.encode(messages[-1]["content"], add_special_tokens=False)
    return tokenizer.encode("\n".join(turn["content"] for turn in messages))


def read_file(path: Path) -> Iterator[Mapping[str, Any]]:
    """Entries of a .jsonl file, or any other file as one text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EnginewrightError(f"{path}: unreadable ({error}); draft.train.texts is a .txt or .jsonl file") from error
    if path.suffix != ".jsonl":
        yield {"text": text}
        return
    for line in text.splitlines():
        yield json.loads(line)


def read_dataset(address: DatasetAddress) -> Iterator[Mapping[str, Any]]:
    """Rows of a data set, as the `datasets` library loads it.

    Raises:
        EnginewrightError: the library is not installed, or it cannot load the data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise EnginewrightError(
            f"draft.train.texts={SCHEME}{address.name} needs the datasets library; install enginewright[draft]"
        ) from error
    try:
        rows = datasets.load_dataset(address.name, address.config, split=address.split)
    except Exception as error:  # it raises what its many readers raise
        reason = str(error).strip().partition("\n")[0]
        raise EnginewrightError(f"data set {address.name}: cannot be loaded ({reason}); {FORM}") from error
    missing = {"text", "messages"}.isdisjoint(rows.column_names)
    if missing:
        columns = ", ".join(rows.column_names)
        raise EnginewrightError(f"data set {address.name} has the columns {columns}; it must have text or messages")
    yield from rows
