"""The prompts and the text that verification runs on: written for this project, shipped with it."""

import json
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import EnginewrightError

PROMPTS_FILE = Path(__file__).with_name("prompts.json")
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
    entries = json.loads(PROMPTS_FILE.read_text(encoding="utf-8"))
    if not 1 <= count <= len(entries):
        raise EnginewrightError(f"{count} verification prompts asked for; choose 1 to {len(entries)}")
    return [Prompt(**entry) for entry in entries[:count]]


def load_text() -> str:
    """The English text on which perplexity is measured."""
    return TEXT_FILE.read_text(encoding="utf-8")
