"""What a client can get wrong: each has a status, and a body in OpenAI's shape that names the field and the bound."""

import json

import pytest

from tests.runtime.server.harness import CHAT, COMPLETIONS, refused

MESSAGES = [{"role": "user", "content": "hi"}]
PROMPT = "hi"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temprature": 1}, "temprature", "unknown field 'temprature'"),
        ({"temperature": "hot"}, "temperature", "temperature: input should be a valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"temperature": -0.1}, None, "temperature is -0.1; it must be 0 or more"),
        ({"top_p": 0}, None, "top_p is 0"),
        ({"top_k": -2}, None, "top_k is -2"),
        ({"min_p": 1.5}, None, "min_p is 1.5"),
        ({"n": 0}, None, "n is 0; it must be between 1 and 128"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"max_tokens": 0}, None, "max_tokens is 0; it must be 1 or more"),
        ({"max_tokens": 92}, None, "exceeds this engine's 96 tokens; ask for at most 91"),
        ({"seed": 2**63}, None, "seed is"),
        ({"stop": [""]}, None, "stop is ('',)"),
        ({"stop": 5}, "stop", "stop: input should be a valid list"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown field 'stream_options.usage'"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, None, "logprobs is 21; it must be between 0 and 20"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "differ; give one"),
        ({"messages": []}, "messages", "messages is empty"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role", "messages.0.role is missing"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content",
            "must be text, or a list of parts of type 'text'",
        ),
        ({"messages": [{"role": "user", "content": "long" * 40}]}, None, "this engine holds 96, prompt and output"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "the prompt is no Unicode text"),
        ({"tools": "all"}, "tools", "valid list"),
        ({"tool_choice": "required"}, "tool_choice", "input should be 'none' or 'auto'"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "'none' or 'auto'"),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]},
            "messages",
            "the arguments of a tool call are no JSON",
        ),
        ({"functions": []}, "functions", "unknown field"),
        ({"enginewright": {"draughts": True}}, "enginewright.draughts", "unknown field"),
    ],
)
def test_a_bad_chat_field_is_named(call, fields, param, words):
    body = json.dumps({"messages": MESSAGES, **fields}).encode()
    error = refused(call(CHAT, body, headers={"content-type": "application/json"}), 400)
    assert words in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", "must be text, token ids, or a list of either"),
        ({"prompt": 5}, "prompt", "must be text, token ids, or a list of either"),
        ({"prompt": []}, "prompt", "is an empty list"),
        ({"prompt": ["a", 1]}, "prompt", "must be text, token ids, or a list of either"),
        ({"prompt": [[1], ["a"]]}, "prompt", "must be text, token ids, or a list of either"),
        ({"prompt": [True]}, "prompt", "must be text, token ids, or a list of either"),
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": [[]]}, None, "the prompt is empty"),
        ({"prompt": [65, 260]}, None, "the prompt has token 260; this model's tokens are 0 to 259"),
        ({"prompt": [-1]}, None, "the prompt has token -1"),
        ({"prompt": ["fine", "x" * 96]}, None, "the prompt has 96 tokens; this engine holds 96"),
        ({"echo": True}, "echo", "echo: input should be False"),
        ({"suffix": "end"}, "suffix", "suffix: input should be None"),
        ({"best_of": 4}, "best_of", "best_of is 4; this server has it equal to n alone"),
        ({"logprobs": True}, "logprobs", "valid integer"),
        ({"messages": MESSAGES}, "messages", "unknown field 'messages'"),
    ],
)
def test_a_bad_completion_field_is_named(call, fields, param, words):
    error = refused(call(COMPLETIONS, {"prompt": PROMPT, **fields}), 400)
    assert words in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "must be a JSON object"),
        (b"{", "the body is not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
        (b'{"messages": [], "temperature": NaN}', "messages is empty"),
    ],
    ids=["empty", "cut short", "a list", "no text", "deep", "NaN"],
)
def test_a_body_that_is_no_json_object_says_so(call, body, words):
    error = refused(call(CHAT, body, headers={"content-type": "application/json"}), 400)
    assert words in error["message"]


def test_json_must_be_sent_as_json(call):
    # A web page of another site may post plain text here without asking; it may not post JSON.
    error = refused(
        call(CHAT, json.dumps({"messages": MESSAGES}).encode(), headers={"content-type": "text/plain"}), 400
    )
    assert "sent as application/json" in error["message"]


def test_a_number_that_is_none_is_refused(call):
    body = b'{"prompt": "hi", "temperature": NaN}'
    error = refused(call(COMPLETIONS, body, headers={"content-type": "application/json"}), 400)
    assert "temperature is nan" in error["message"]


def test_what_is_not_there_is_404(call):
    assert refused(call("/v1/embeddings", {}), 404)["message"] == "nothing here answers POST /v1/embeddings"
    assert refused(call("/secret.txt"), 404)["message"] == "nothing here answers GET /secret.txt"
    assert refused(call("/../settings.py"), 404)["code"] == "not_found"
    assert refused(call("/v1/models", {}), 404)["message"] == "nothing here answers POST /v1/models"


@pytest.mark.parametrize(
    "field", ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"]
)
def test_fields_for_a_hosted_services_books_are_taken_and_ignored(call, field):
    plain = call(COMPLETIONS, {"prompt": PROMPT, "temperature": 0}).json()
    assert call(COMPLETIONS, {"prompt": PROMPT, "temperature": 0, field: "x"}).json()["choices"] == plain["choices"]


def test_null_is_as_good_as_nothing(call):
    nothing = dict.fromkeys(("n", "stop", "seed", "max_completion_tokens", "tools", "stream", "logit_bias", "user"))
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 5}
    assert call(CHAT, {**body, **nothing}).json()["choices"] == call(CHAT, body).json()["choices"]


def test_a_salt_of_any_characters_is_only_a_salt(call):
    body = b'{"prompt": "long enough for a block", "max_tokens": 2, "cache_salt": "\\ud800"}'
    assert call(COMPLETIONS, body, headers={"content-type": "application/json"}).status_code == 200


def test_nothing_refused_reaches_the_engine(call, shared_llm):
    for _ in range(3):
        refused(call(COMPLETIONS, {"prompt": ["fine", ""]}), 400)
    assert not shared_llm.text_engine.has_work
