"""The official client against the server, over a real socket: it works unchanged, and gets what the engine says."""

import pytest

from runtime.llm import LLM
from runtime.sampling import SamplingParams
from runtime.text_engine import TextEngine
from tests.runtime.tiny import make_engine

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello wörld"}]
PROMPT = "hello wörld"
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def expected(checkpoint, tokenizer):
    """The engine without a server."""
    return LLM(TextEngine(make_engine(checkpoint), tokenizer))


def test_a_chat_is_answered_as_the_engine_would_alone(client, expected):
    answer = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    alone = expected.chat(MESSAGES, SamplingParams(max_tokens=12))
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == alone.completions[0].finish_reason
    assert answer.usage.prompt_tokens == len(alone.prompt_ids)
    assert answer.usage.completion_tokens == len(alone.completions[0].token_ids)
    assert answer.model == "tiny"
    assert answer.object == "chat.completion"


def test_a_streamed_chat_adds_up_to_the_whole_and_ends_with_its_counts(client):
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, stream_options=options, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
