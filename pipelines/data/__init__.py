"""The prompts and the text that verification runs on: written for this project, shipped with it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from runtime.text.tokenizer import Tokenizer

PROMPTS_FILE = Path(__file__).with_name("prompts.json")
DRAFT_PROMPTS_FILE = Path(__file__).with_name("draft_prompts.json")
TEXT_FILE = Path(__file__).with_name("perplexity.txt")


@dataclass(frozen=True)
class Prompt:
    """kind: chat (meant for the model's chat template), or code, reasoning, prose, language, numbers (plain text)."""

    kind: str
    text: str


def load_prompts(count: int) -> list[Prompt]:
    """The first `count` shipped prompts: their order mixes the kinds.

    Raises:
        EnginewrightError: fewer are shipped than are asked for.
    """
    prompts = read_prompts(PROMPTS_FILE)
    if not 1 <= count <= len(prompts):
        raise EnginewrightError(f"{count} verification prompts asked for; choose 1 to {len(prompts)}")
    return prompts[:count]


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of one of the shipped files."""
    return [Prompt(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def encode_prompt(tokenizer: "Tokenizer", prompt: Prompt, chat: bool) -> list[int]:
    """A prompt's token ids; with `chat`, through the model's template where it has one."""
    if chat and tokenizer.has_chat_template:
        return tokenizer.encode_chat([{"role": "user", "content": prompt.text}])
    return tokenizer.encode(prompt.text)


def load_text() -> str:
    """The English text on which perplexity is measured."""
    return TEXT_FILE.read_text(encoding="utf-8")
