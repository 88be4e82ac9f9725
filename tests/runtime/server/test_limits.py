"""What the server lets through: how many wait, how long a body is, how long anything takes, and who may ask."""

import asyncio
import socket

import httpx2
import pytest

from runtime.errors import EnginewrightError
from runtime.server.auth import load_keys
from runtime.server.settings import ServerSettings
from tests.runtime.server.harness import COMPLETIONS, called, is_idle, num_open, refused, running, until
from tests.runtime.tiny import PLAN

LONG = {"prompt": "hello", "max_tokens": 80, "ignore_eos": True, "temperature": 0}


def stream_lines(response):
    return [line for line in response.text.split("\n\n") if line]


def test_a_full_queue_gets_429_with_when_to_come_back_and_takes_requests_again(held_llm, pace):
    async def main(server, address):
        async with httpx2.AsyncClient(base_url=address, timeout=30) as client:
            places = PLAN.max_batch_size + 2
            open_ones = [asyncio.create_task(client.post(COMPLETIONS, json=LONG)) for _ in range(places)]
            while num_open(server) < places:
                await asyncio.sleep(0.01)
            turned_away = await client.post(COMPLETIONS, json=LONG)
            pace.go_on()
            answers = await asyncio.gather(*open_ones)
            return turned_away, answers, await client.post(COMPLETIONS, json={**LONG, "max_tokens": 2})

    with running(held_llm, max_queue=2) as (server, address):
        turned_away, answers, late = asyncio.run(main(server, address))
    error = refused(turned_away, 429)
    assert error["message"] == "the server is full: 6 samples are open, and it takes 6; try again later"
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert 1 <= int(turned_away.headers["retry-after"]) <= 60
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {answers[0].json()["choices"][0]["text"]}
    assert late.status_code == 200


def test_more_samples_than_ever_fit_are_a_mistake_not_a_full_queue(call):
    error = refused(call(COMPLETIONS, {**LONG, "n": 5}, max_queue=0), 400)
    assert error["message"] == "5 samples in one request; this server takes at most 4"


def test_a_long_body_gets_413_whether_or_not_it_says_how_long_it_is(call):
    body = b'{"prompt": "' + b"x" * 2000 + b'"}'
    assert "longer than 1024 bytes" in refused(call(COMPLETIONS, body, max_body_bytes=1024), 413)["message"]
    headers = {"content-length": "10", "content-type": "application/json"}
    assert (
        "longer than 1024 bytes"
        in refused(call(COMPLETIONS, body, headers=headers, max_body_bytes=1024), 413)["message"]
    )


def test_a_body_that_does_not_arrive_gets_408(shared_llm):
    with running(shared_llm, body_timeout_s=0.1) as (_, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: tiny\r\ncontent-length: 100\r\n\r\n{")
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert answer.startswith("HTTP/1.1 408")
    assert "did not arrive within 0.1 s" in answer


def test_an_answer_that_takes_too_long_gets_504_and_frees_its_blocks(held_llm, pace):
    error = refused(called(held_llm, COMPLETIONS, LONG, request_timeout_s=0.2), 504)
    assert (error["code"], error["type"]) == ("timeout", "server_error")
    assert "longer than 0.2 s" in error["message"]
    pace.go_on()
    until(lambda: is_idle(held_llm))
    assert pace.num_steps <= 6


def test_a_stream_that_takes_too_long_ends_with_an_error_event(held_llm, pace):
    response = called(held_llm, COMPLETIONS, {**LONG, "stream": True}, request_timeout_s=1.0)
    *tokens, error, done = stream_lines(response)
    assert response.status_code == 200
    assert 1 <= len(tokens) <= 5
    assert '"code": "timeout"' in error
    assert done == "data: [DONE]"
    pace.go_on()
    until(lambda: is_idle(held_llm))


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Bearer first-ke", "Basic first-key", "first-key"])
def test_v1_needs_one_of_the_keys(call, header):
    headers = {"authorization": header} if header else {}
    response = call("/v1/models", keys=["first-key", "second-key"], headers=headers)
    assert refused(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["first-key", "second-key", "schlüssel"])
def test_any_of_the_keys_will_do(call, key):
    headers = {"authorization": f"Bearer {key}".encode()}
    assert call("/v1/models", keys=["first-key", "second-key", "schlüssel"], headers=headers).status_code == 200


def test_a_request_without_a_key_is_refused_before_its_body_is_looked_at(call):
    assert call(COMPLETIONS, b"{" * 5000, keys=["a"], max_body_bytes=1024).status_code == 401


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/version", "/metrics"])
def test_probes_and_the_page_need_no_key(call, path):
    assert call(path, keys=["first-key"]).status_code == 200


def test_keys_come_from_a_file_and_from_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the first team\nfirst-key\n\n  second-key  \n")
    assert load_keys(file, {"ENGINEWRIGHT_API_KEYS": "third, fourth"}) == ["first-key", "second-key", "third", "fourth"]
    assert load_keys(None, {}) == []


@pytest.mark.parametrize(
    ("content", "environment", "words"),
    [
        ("# none\n", {}, "holds no API key; write one per line"),
        (None, {}, "the API keys cannot be read"),
        ("key", {"ENGINEWRIGHT_API_KEYS": " , "}, "ENGINEWRIGHT_API_KEYS is set and holds no API key"),
    ],
)
def test_keys_that_were_meant_and_are_missing_stop_the_start(tmp_path, content, environment, words):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(EnginewrightError, match=words):
        load_keys(file, environment)


@pytest.mark.parametrize(
    ("name", "value"), [("port", 70000), ("max_queue", -1), ("max_body_bytes", 5), ("request_timeout_s", float("nan"))]
)
def test_a_setting_out_of_bounds_is_named(name, value):
    with pytest.raises(EnginewrightError, match=f"{name} is {value}; it must be between"):
        ServerSettings(**{name: value})
