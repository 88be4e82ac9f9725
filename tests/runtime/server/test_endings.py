"""However a request or the server ends, nothing is lost silently and nothing is held: clients that leave, engines that
fail, and servers that are told to stop."""

import signal

import httpx2
import openai
import pytest

from runtime.async_llm import AsyncLLM
from tests.runtime.server.harness import CHAT, COMPLETIONS, called, is_idle, num_open, refused, running, until

LONG = {"prompt": "hello", "max_tokens": 80, "ignore_eos": True, "temperature": 0}
STREAM = {**LONG, "stream": True}


@pytest.mark.parametrize("n", [1, 9], ids=["running", "some of them waiting"])
def test_a_client_that_leaves_a_stream_frees_its_blocks_with_the_step_that_runs(held_llm, pace, n):
    with running(held_llm) as (server, address):
        with httpx2.stream("POST", address + COMPLETIONS, json={**STREAM, "n": n}):
            until(lambda: pace.num_steps == 6)
            assert num_open(server) == n
        until(lambda: num_open(server) == 0)
        assert not is_idle(held_llm)
        pace.go_on()
        until(lambda: is_idle(held_llm))
    assert pace.num_steps == 6
    held_llm.text_engine.engine.scheduler.check()


def test_a_client_that_does_not_wait_for_a_whole_answer_frees_its_blocks(held_llm, pace):
    with running(held_llm) as (server, address):
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(address + COMPLETIONS, json={**LONG, "n": 6}, timeout=1.0)
        until(lambda: num_open(server) == 0)
        pace.go_on()
        until(lambda: is_idle(held_llm))
    assert pace.num_steps == 6


def test_a_client_that_leaves_before_its_prompt_is_in_the_engine_leaves_nothing_there(slow_llm):
    with running(slow_llm) as (_, address):
        for _ in range(5):
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(address + COMPLETIONS, json=LONG, timeout=0.005)
        until(lambda: is_idle(slow_llm))
        assert httpx2.post(address + COMPLETIONS, json={**LONG, "max_tokens": 2}).status_code == 200


def test_a_failing_engine_fails_its_requests_and_health(text_engine, monkeypatch):
    llm = AsyncLLM(text_engine)
    assert called(llm, "/health").status_code == 200

    def broken(*_):
        raise RuntimeError("device lost")

    monkeypatch.setattr(text_engine.engine.backend, "step", broken)
    for body in (LONG, STREAM, {"messages": [{"role": "user", "content": "hi"}]}):
        response = called(llm, CHAT if "messages" in body else COMPLETIONS, body)
        if response.status_code == 200:  # the stream had begun before the step
            assert "the engine failed (RuntimeError)" in response.text
        else:
            assert "the engine failed (RuntimeError)" in refused(response, 500)["message"]
    assert refused(called(llm, "/health"), 503)["code"] == "engine_failed"
    assert refused(called(llm, "/ready"), 503)["code"] == "engine_failed"
    llm.close()


def test_an_engine_that_fails_midway_ends_open_streams_with_an_error(slow_llm, monkeypatch, caplog):
    steps = []

    def breaks_later(plan, state):
        steps.append(plan)
        if len(steps) > 5:
            raise RuntimeError("device lost")
        return step(plan, state)

    step = slow_llm.text_engine.engine.backend.step
    monkeypatch.setattr(slow_llm.text_engine.engine.backend, "step", breaks_later)
    with (
        running(slow_llm) as (_, address),
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
    ):
        options = {"model": "tiny", "prompt": "hello", "max_tokens": 80, "stream": True}
        stream = client.completions.create(**options, extra_body={"ignore_eos": True})
        with pytest.raises(openai.APIError, match=r"the engine failed \(RuntimeError\)"):
            list(stream)
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="tiny", prompt="hello")
    assert "device lost" in caplog.text  # the client learns the kind, the log everything


def test_on_sigterm_open_streams_finish_and_new_requests_are_turned_away(held_llm, pace):
    with running(held_llm) as (server, address):
        assert httpx2.get(f"{address}/ready").status_code == 200
        with httpx2.stream("POST", address + COMPLETIONS, json=STREAM, timeout=10) as response:
            lines = response.iter_lines()
            next(lines)
            server.handle_exit(signal.SIGTERM, None)
            assert refused(httpx2.get(f"{address}/ready"), 503)["code"] == "draining"
            assert httpx2.get(f"{address}/health").status_code == 200
            turned_away = httpx2.post(address + COMPLETIONS, json=LONG)
            pace.go_on()
            rest = [line for line in lines if line]
        assert refused(turned_away, 503)["message"] == "the server is shutting down"
        assert turned_away.headers["retry-after"] == "5"
        assert '"finish_reason":"length"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        until(lambda: server.should_exit)


@pytest.mark.parametrize("times", [1, 2], ids=["the time is over", "a second signal"])
def test_what_has_not_finished_when_draining_ends_is_told_so(slow_llm, times):
    with running(slow_llm, drain_timeout_s=0.2 if times == 1 else 60.0) as (server, address):
        with httpx2.stream("POST", address + COMPLETIONS, json={**STREAM, "n": 12}, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            for _ in range(times):
                server.handle_exit(signal.SIGTERM, None)
            rest = [line for line in lines if line]
        assert "the server shut down before the answer was complete" in rest[-2]
        assert rest[-1] == "data: [DONE]"
        until(lambda: server.should_exit)
