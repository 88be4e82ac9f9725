"""Engines of the tiny model to serve, and clients of a server that all tests share."""

import time

import openai
import pytest

from runtime.async_llm import AsyncLLM
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from runtime.speculation.policy import FixedPolicy
from runtime.speculation.tree import TreeShape
from runtime.text_engine import TextEngine
from tests.runtime.drafting import Oracle
from tests.runtime.server.harness import Pace, called, running
from tests.runtime.tiny import make_engine


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


@pytest.fixture
def pace(text_engine, monkeypatch):
    """How the engine of `held_llm` goes on."""
    pace = Pace(text_engine.step)
    monkeypatch.setattr(text_engine, "step", pace)
    return pace


@pytest.fixture
def held_llm(text_engine, pace):
    """An engine of the test's own that waits in its sixth step; see `Pace`."""
    llm = AsyncLLM(text_engine)
    yield llm
    pace.go_on()
    llm.close()


@pytest.fixture
def drafting_llm(checkpoint, tokenizer):
    """An engine of the test's own, whose drafter knows the greedy answers to "hello"."""
    llm = LLM(TextEngine(make_engine(checkpoint), tokenizer))
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    known = [*llm.generate("hello", params), llm.chat([{"role": "user", "content": "hello"}], params)]
    oracle = Oracle([output.prompt_ids + output.completions[0].token_ids for output in known], accuracy=1.0)
    engine = make_engine(checkpoint, drafter=oracle, policy=FixedPolicy(TreeShape(6, 2, 3)))
    llm = AsyncLLM(TextEngine(engine, tokenizer))
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
