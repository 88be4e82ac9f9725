"""What of a chat request the model's template sees: turns, tools and variables."""

import json

import pytest

from runtime.async_llm import AsyncLLM
from runtime.text_engine import TextEngine
from tests.runtime.server.harness import CHAT, called
from tests.runtime.tiny import make_engine, make_tokenizer

# Writes everything it is given, so that a prompt's tokens, one per byte, tell what that was.
TEMPLATE = "{{ messages | tojson }}{{ tools | tojson }}{{ mood }}"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "a": "<&'>"}}}
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def telling_llm(checkpoint, tmp_path_factory):
    engine = make_engine(checkpoint, max_seq_len=1024, num_blocks=512)
    llm = AsyncLLM(TextEngine(engine, make_tokenizer(tmp_path_factory.mktemp("telling"), TEMPLATE)))
    yield llm
    llm.close()


@pytest.fixture
def seen(telling_llm, monkeypatch):
    """Send a request and give the text that the template made of it."""
    prompts = []
    encode = telling_llm.text_engine.tokenizer.encode
    monkeypatch.setattr(
        telling_llm.text_engine.tokenizer,
        "encode",
        lambda text, **options: prompts.append(text) or encode(text, **options),
    )

    def send(**fields):
        response = called(telling_llm, CHAT, {"max_tokens": 1, "messages": [USER], **fields})
        assert response.status_code == 200, response.text
        return prompts.pop()

    return send


def test_tools_reach_the_template_as_they_are(seen):
    assert seen(tools=[TOOL], tool_choice="auto", parallel_tool_calls=True) == json.dumps([USER]) + json.dumps([TOOL])


def test_without_tools_or_with_tool_choice_none_the_template_sees_none(seen):
    assert seen() == seen(tools=[TOOL], tool_choice="none") == json.dumps([USER]) + "null"


def test_turns_keep_their_extras_lose_their_nulls_and_have_arguments_as_objects(seen):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning_content": "hm"},
        {
            "role": "tool",
            "content": [{"type": "text", "text": "snow"}, {"type": "text", "text": "wind"}],
            "tool_call_id": "1",
        },
    ]
    first, second = json.loads(seen(messages=messages).removesuffix("null"))
    assert first.pop("tool_calls") == [{**call, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
    assert first == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert second == {"role": "tool", "content": "snow\nwind", "tool_call_id": "1"}


def test_variables_reach_the_template_but_cannot_replace_what_it_is_given(seen):
    assert seen(chat_template_kwargs={"mood": "good", "messages": []}) == json.dumps([USER]) + "null" + "good"


def test_a_template_that_refuses_is_a_400(checkpoint, tmp_path):
    tokenizer = make_tokenizer(tmp_path, "{{ raise_exception('roles must alternate') }}")
    llm = AsyncLLM(TextEngine(make_engine(checkpoint), tokenizer))
    response = called(llm, CHAT, {"messages": [USER]})
    llm.close()
    assert response.status_code == 400
    assert "the chat template refused the messages: roles must alternate" in response.json()["error"]["message"]
