"""What the crowd asks: requests of every kind whose answers are known, and requests that must be refused."""

import json
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.data import load_text

NUM_PREFIXES, PREFIX_CHARS = 3, 64
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Emil"]}, "ages": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Case:
    """One request: its prompt, and the fields of its body beside it."""

    api: str
    prompt: str
    fields: dict[str, Any]


class Answer(NamedTuple):
    """What must be the same in a crowd."""

    text: str
    finish_reason: str | None
    output_tokens: int


class Bad(NamedTuple):
    """A request that must be refused, with its body as bytes."""

    path: str
    body: bytes


def make_cases(count: int, seed: int) -> list[Case]:
    """Requests that share prefixes or do not, greedy and seeded, with every rule of sampling among them."""
    rng = random.Random(seed)
    text = load_text()

    def part(length: int) -> str:
        begin = rng.randrange(len(text) - length)
        return text[begin : begin + length]

    prefixes = ["", *(part(PREFIX_CHARS) for _ in range(NUM_PREFIXES))]
    return [
        Case(rng.choice(["chat", "completions"]), rng.choice(prefixes) + part(rng.randint(1, 60)), _fields(rng))
        for _ in range(count)
    ]


def _fields(rng: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {"max_tokens": rng.randint(2, 64), "seed": rng.randrange(2**31)}
    fields["temperature"] = rng.choice([0.0, 0.7, 1.2])
    kinds: list[dict[str, Any]] = [
        {},
        {"top_p": 0.8, "top_k": 20},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {str(rng.randrange(256)): 5.0}, "min_tokens": fields["max_tokens"] // 2},
        {"stop": ["e", "\n"]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}},
    ]
    return fields | rng.choice(kinds)


def bad_requests(model: str) -> list[Bad]:
    """One of each kind of mistake; the server must name it with a status of 4xx."""
    chat, completions = "/chat/completions", "/completions"
    said = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    asked = {"model": model, "prompt": "Hello", "max_tokens": 4}
    bodies: list[tuple[str, dict[str, Any]]] = [
        (chat, {**said, "temperature": -1}),
        (chat, {**said, "no_such_field": 1}),
        (chat, {**said, "messages": "Hello"}),
        (chat, {**said, "model": "no-such-model"}),
        (chat, {**said, "messages": [{"role": "user", "content": "long " * 2000}]}),
        (
            chat,
            {**said, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 1}}}},
        ),
        (completions, {**asked, "prompt": ""}),
        (completions, {**asked, "prompt": [10**9]}),
        (completions, {**asked, "max_tokens": 10**6}),
        (completions, {**asked, "logit_bias": {"123456789": 1}}),
        (completions, {**asked, "n": 0}),
    ]
    return [Bad(path, json.dumps(body).encode()) for path, body in bodies] + [Bad(chat, b"{not JSON"), Bad(chat, b"")]
