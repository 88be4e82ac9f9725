"""A server over a tiny model: on a socket of its own, or called in this process; and what its errors look like."""

import asyncio
import threading
import time
from contextlib import contextmanager

import httpx2

from runtime.server.app import make_app
from runtime.server.run import DrainingServer
from runtime.server.settings import ServedModel, ServerSettings
from tests.runtime.tiny import PLAN

MODEL = ServedModel("tiny", "0123456789abcdef", "cpu", PLAN.max_seq_len, 1_700_000_000)
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Pace:
    """Holds an engine in its sixth step, when a lone request has five tokens, until `go_on`."""

    def __init__(self, step):
        self.num_steps = 0
        self._step = step
        self._resumed = threading.Event()

    def __call__(self):
        self.num_steps += 1
        if self.num_steps == 6:
            assert self._resumed.wait(timeout=60)
        return self._step()

    def go_on(self):
        self._resumed.set()


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


def until(condition, seconds=20.0):
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def num_open(server):
    """Samples that the server lets into the engine."""
    return server.config.app.state.admission.num_open


def is_idle(llm):
    """Whether the engine holds nothing of any request."""
    scheduler = llm.text_engine.engine.scheduler
    return not scheduler.has_work and scheduler.pool.num_free == scheduler.pool.num_blocks


def refused(response, status):
    """The error of a response that must have `status`, after a look at its shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error
