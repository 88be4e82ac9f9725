"""Text to token ids and back, from the tokenizer folder of a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from runtime.errors import EnginewrightError
from runtime.text.chat import ChatTemplate

GENERATION_FILE = "generation.json"
TEMPLATE_FILE = "chat_template.jinja"


class SpecialTokens(NamedTuple):
    """Ids that generation needs, from `generation.json`."""

    bos_token_id: int | None
    eos_token_ids: frozenset[int]


class Tokenizer:
    """A `tokenizers` tokenizer with the model's end tokens and chat template.

    Raises:
        EnginewrightError: a file is missing or unreadable.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self.backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise EnginewrightError(f"{path}: unreadable ({error}); build the model again") from error
        bos_token_id, self.eos_token_ids = _read_special_tokens(folder / GENERATION_FILE)
        template = folder / TEMPLATE_FILE
        self._chat = None
        if template.exists():
            eos_token = self._token(min(self.eos_token_ids, default=None))
            self._chat = ChatTemplate(template.read_text(encoding="utf-8"), self._token(bos_token_id), eos_token)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        return self._chat is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens written out in it become single ids.

        Raises:
            EnginewrightError: the text has half of a surrogate pair, as broken JSON escapes give.
        """
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError as error:
            raise EnginewrightError("the prompt is no Unicode text: it has half of a surrogate pair") from error

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def encode_chat(
        self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer begins.

        variables: what else the template may look at; see `ChatTemplate.render`.

        Raises:
            EnginewrightError: the model has no chat template, or it refuses the messages.
        """
        if self._chat is None:
            raise EnginewrightError("this model has no chat template; use generate with a plain prompt instead")
        # The template writes its own special tokens.
        return self.encode(self._chat.render(messages, variables), add_special_tokens=False)

    def _token(self, token_id: int | None) -> str:
        return (self.backend.id_to_token(token_id) or "") if token_id is not None else ""


def _read_special_tokens(path: Path) -> SpecialTokens:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return SpecialTokens(fields["bos_token_id"], frozenset(fields["eos_token_ids"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnginewrightError(f"{path}: unreadable ({error!r}); build the model again") from error
