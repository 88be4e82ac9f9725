"""Fields that change which tokens may come, through HTTP as through the engine."""

import json
from typing import Literal

import pydantic
import pytest

from runtime.llm import LLM
from runtime.sampling import SamplingParams, StructuredOutput
from runtime.text_engine import TextEngine
from tests.runtime.server.harness import CHAT, COMPLETIONS, refused
from tests.runtime.tiny import EOS, make_engine

PROMPT = "hello"
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def expected(checkpoint, tokenizer):
    """The engine without a server."""
    return LLM(TextEngine(make_engine(checkpoint), tokenizer))


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"logit_bias": {"65": 100, "66": -5.5}}, {"logit_bias": {65: 100.0, 66: -5.5}}),
        ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ({"frequency_penalty": 1}, {"frequency_penalty": 1.0}),
        ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
        ({"min_tokens": 12}, {"min_tokens": 12}),
        ({"stop_token_ids": [86]}, {"stop_token_ids": (86,)}),
    ],
)
def test_a_field_reaches_the_engine(call, expected, fields, params):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, **fields}
    choice = call(COMPLETIONS, body).json()["choices"][0]
    alone = expected.generate(PROMPT, SamplingParams(max_tokens=12, **params))[0]
    assert choice["text"] == alone.text
    assert choice["finish_reason"] == alone.completions[0].finish_reason


def test_min_tokens_and_ignore_eos_fix_the_length_for_load_tools(call):
    body = {"prompt": PROMPT, "logit_bias": {str(EOS): 100}, "max_tokens": 9}
    assert call(COMPLETIONS, body).json()["usage"]["completion_tokens"] == 1
    assert call(COMPLETIONS, {**body, "min_tokens": 7}).json()["usage"]["completion_tokens"] == 8
    assert call(COMPLETIONS, {**body, "ignore_eos": True}).json()["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept_to(client, stream):
    schema = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
    options = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 3, "max_tokens": 60}
    answer = client.chat.completions.create(response_format=schema, stream=stream, **options)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    assert json.loads(text)["a"] in (1, 2)


def test_the_clients_own_models_come_back_parsed(client):
    class Answer(pydantic.BaseModel):
        a: Literal[1, 2]

    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.parse(
        model="tiny", messages=messages, response_format=Answer, max_tokens=80, seed=3
    )
    assert answer.choices[0].message.parsed.a in (1, 2)


def test_any_json_object_or_text(call, expected):
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 10}
    answers = {
        kind: call(CHAT, {**body, "response_format": {"type": kind}}).json()["choices"][0]["message"]["content"]
        for kind in ("text", "json_object")
    }
    structured = SamplingParams(max_tokens=10, structured=StructuredOutput())
    assert answers["text"] == expected.chat(messages, SamplingParams(max_tokens=10)).text
    assert answers["json_object"] == expected.chat(messages, structured).text
    assert answers["json_object"].startswith("{")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"logit_bias": {"the": 1}}, "logit_bias: its keys are token ids"),
        ({"logit_bias": {"65": 101}}, "logit_bias[65] is 101.0; it must be between -100 and 100"),
        ({"logit_bias": {"999": 1}}, "logit_bias names token 999; this model's tokens are 0 to 259"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias: dictionary should have at most 1024 items"),
        ({"stop": list("abcdefghijklmnopq")}, "stop: list should have at most 16 items"),
        ({"presence_penalty": 3}, "presence_penalty is 3.0; it must be between -2 and 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0.0; it must be above 0"),
        ({"min_tokens": 90, "max_tokens": 9}, "min_tokens is 90; it must be between 0 and max_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type: input should be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "colour"}}}},
            "the JSON schema cannot be used",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos is True"),
    ],
)
def test_a_bad_value_is_named(call, fields, words):
    assert words in refused(call(COMPLETIONS, {"prompt": PROMPT, **fields}), 400)["message"]


def test_a_schema_nested_without_end_is_refused(call):
    schema = '{"items":' * 900 + "{}" + "}" * 900
    kind = f'{{"type": "json_schema", "json_schema": {{"name": "a", "schema": {schema}}}}}'
    body = f'{{"prompt": "hi", "response_format": {kind}}}'
    refused(call(COMPLETIONS, body.encode(), headers={"content-type": "application/json"}), 400)


def test_an_answer_that_its_grammar_ends_is_an_error_not_an_answer(call, monkeypatch, shared_llm):
    engine = shared_llm.text_engine.engine
    receive = engine._receive

    def failing(request, token_ids, logprobs):
        events = receive(request, token_ids, logprobs)
        return [event._replace(finish_reason="error") if event.finish_reason else event for event in events]

    monkeypatch.setattr(engine, "_receive", failing)
    error = refused(call(COMPLETIONS, {"prompt": PROMPT}), 400)
    assert error["code"] == "structured_output_failed"
