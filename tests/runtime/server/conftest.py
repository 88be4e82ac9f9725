"""A server over the tiny model: through real sockets, and as an ASGI application called in this process."""

import asyncio
import threading
import time
from contextlib import contextmanager

import httpx2
import openai
import pytest

from runtime.async_llm import AsyncLLM
from runtime.server.app import make_app
from runtime.server.run import DrainingServer
from runtime.server.settings import ServedModel, ServerSettings
from runtime.text_engine import TextEngine
from tests.runtime.tiny import PLAN, make_engine

MODEL = ServedModel("tiny", "0123456789abcdef", "cpu", PLAN.max_seq_len, 1_700_000_000)
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@contextmanager
def running(llm, keys=(), tracer=None, drain_timeout_s=5.0, **settings):
    """The application over a running engine, on a free port of this machine; yields the server and its address."""
    app = make_app(llm, MODEL, ServerSettings(**settings), list(keys), tracer)
    server = DrainingServer(app, llm, drain_timeout_s)
    server.config.port = 0
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def shared_llm(checkpoint, tokenizer):
    """One engine for all tests that leave it as it was."""
    llm = AsyncLLM(TextEngine(make_engine(checkpoint), tokenizer))
    yield llm
    llm.close()


@pytest.fixture
def slow_llm(text_engine, monkeypatch):
    """An engine of the test's own, whose steps take 20 ms: a whole text takes about 1.5 s."""
    step = text_engine.step

    def slow_step():
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(text_engine, "step", slow_step)
    llm = AsyncLLM(text_engine)
    yield llm
    llm.close()


@pytest.fixture(scope="session")
def address(shared_llm):
    with running(shared_llm) as (_, address):
        yield address


@pytest.fixture(scope="session")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def call(shared_llm):
    """Call the application without sockets: `call(path, body)`, or `call(path)` to get."""
    return lambda path, body=None, **options: called(shared_llm, path, body, **options)


def called(llm, path, body=None, keys=(), headers=None, **settings):
    """One request to an application of its own over `llm`."""
    app = make_app(llm, MODEL, ServerSettings(**settings), list(keys))

    async def send():
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://tiny") as client:
            if body is None:
                return await client.get(path, headers=headers)
            content = {"content": body} if isinstance(body, bytes) else {"json": body}
            return await client.post(path, headers=headers, **content)

    return asyncio.run(send())


def until(condition, seconds=5.0):
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_idle(llm):
    """Whether the engine holds nothing of any request."""
    scheduler = llm.text_engine.engine.scheduler
    return not scheduler.has_work and scheduler.pool.num_free == scheduler.pool.num_blocks
