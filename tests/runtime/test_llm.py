"""The public entry: text, samples, log-probabilities, streaming and cancellation."""

import asyncio
import math
import threading
import time
from dataclasses import replace

import pytest

from runtime.async_llm import AsyncLLM
from runtime.errors import EnginewrightError
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from runtime.scoring import score
from runtime.speculation.tree import TreeShape
from runtime.text_engine import TextEngine
from tests.runtime.drafting import Always, Oracle
from tests.runtime.tiny import make_engine

PARAMS = SamplingParams(max_tokens=10, ignore_eos=True)


@pytest.fixture
def llm(text_engine):
    return LLM(text_engine)


def test_prompts_may_be_text_or_ids_one_or_many(llm):
    one = llm.generate("hello", PARAMS)[0]
    ids = llm.text_engine.tokenizer.encode("hello")
    assert llm.generate(ids, PARAMS)[0].text == one.text
    many = llm.generate(["hello", ids, "other"], [PARAMS, PARAMS, SamplingParams(max_tokens=3, ignore_eos=True)])
    assert [output.text for output in many[:2]] == [one.text] * 2
    assert len(many[2].completions[0].token_ids) == 3


def test_n_samples_differ_and_are_in_order(llm):
    params = SamplingParams(temperature=1.0, seed=1, n=4, max_tokens=10, ignore_eos=True)
    output = llm.generate("hello", params)[0]
    assert [completion.sample_index for completion in output.completions] == [0, 1, 2, 3]
    assert len({tuple(completion.token_ids) for completion in output.completions}) == 4


def test_logprobs_are_those_of_the_raw_logits(llm):
    params = SamplingParams(temperature=0.7, top_k=3, seed=5, max_tokens=6, ignore_eos=True, logprobs=4)
    output = llm.generate("hello", params)[0]
    completion = output.completions[0]
    text = output.prompt_ids + completion.token_ids
    logits = score(llm.text_engine.engine, text, first=len(output.prompt_ids) - 1)[:-1]
    expected = logits.log_softmax(dim=-1)
    assert len(completion.logprobs) == len(completion.token_ids) == 6
    for position, (token_id, entry) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        assert math.isclose(entry.chosen, expected[position, token_id], abs_tol=1e-9)
        values, ids = expected[position].topk(4)
        assert [token for token, _ in entry.top] == ids.tolist()
        assert all(math.isclose(a, b, abs_tol=1e-9) for (_, a), b in zip(entry.top, values.tolist(), strict=True))


def test_a_stop_string_ends_the_text_before_it_and_frees_the_blocks(llm):
    free = llm.generate("hello", PARAMS)[0].text
    stop = free[4:6]
    output = llm.generate("hello", SamplingParams(max_tokens=10, ignore_eos=True, stop=(stop,)))[0]
    assert output.text == free[: free.index(stop)]
    assert output.completions[0].finish_reason == "stop"
    llm.text_engine.engine.scheduler.check()
    assert llm.text_engine.engine.scheduler.pool.num_free == llm.text_engine.engine.backend.limits.num_blocks


def test_a_stream_adds_up_to_the_whole(llm):
    whole = llm.generate("hello", PARAMS)[0]
    deltas = list(llm.stream("hello", PARAMS))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [delta.token_id for delta in deltas] == whole.completions[0].token_ids
    assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize("stop_at", [None, 9])
def test_every_token_of_the_last_step_arrives(checkpoint, tokenizer, stop_at):
    """With drafts a step may end a request at any of its tokens: those before it are text as well."""
    prompt = [7, 7, 7]
    text = LLM(TextEngine(make_engine(checkpoint), tokenizer)).generate(prompt, PARAMS)[0].completions[0].token_ids
    drafter = Oracle([prompt + text], accuracy=1.0)
    engine = make_engine(checkpoint, drafter=drafter, policy=Always(TreeShape(6, 1, 5)))
    ends = (text[stop_at],) if stop_at else ()
    expected = text[: text.index(ends[0]) + 1] if ends else text
    deltas = list(LLM(TextEngine(engine, tokenizer)).stream(prompt, replace(PARAMS, stop_token_ids=ends)))
    assert [delta.token_id for delta in deltas] == expected
    assert [delta.finish_reason for delta in deltas] == [None] * (len(expected) - 1) + ["stop" if ends else "length"]


def test_leaving_a_stream_early_frees_the_blocks(llm):
    for _ in llm.stream("hello", PARAMS):
        break
    assert not llm.text_engine.has_work


def test_one_bad_prompt_among_many_leaves_nothing_behind(llm):
    with pytest.raises(EnginewrightError, match="the prompt is empty"):
        llm.generate(["fine", ""], PARAMS)
    assert not llm.text_engine.has_work
    with pytest.raises(EnginewrightError, match="the prompt is empty"):
        llm.generate([], PARAMS)


async def _collect(llm, prompt, params=PARAMS):
    return "".join([delta.text async for delta in llm.stream(prompt, params)])


def test_async_callers_get_what_they_would_get_alone(text_engine):
    prompts = [f"prompt {number}" for number in range(9)]
    expected = [output.text for output in LLM(text_engine).generate(prompts, PARAMS)]

    async def main():
        async with AsyncLLM(text_engine) as llm:
            return await asyncio.gather(*(_collect(llm, prompt) for prompt in prompts))

    assert asyncio.run(main()) == expected


def test_an_async_caller_that_leaves_frees_its_blocks(text_engine):
    async def main():
        async with AsyncLLM(text_engine) as llm:
            stream = llm.stream("hello", SamplingParams(max_tokens=80, ignore_eos=True))
            await anext(stream)
            await stream.aclose()
            return await _collect(llm, "other")

    asyncio.run(main())
    assert not text_engine.has_work
    text_engine.engine.scheduler.check()


def test_an_async_caller_that_gives_up_before_its_prompt_arrives_leaves_nothing_behind(text_engine, monkeypatch):
    step, stepping = text_engine.step, threading.Event()

    def slow_step():
        stepping.set()
        time.sleep(0.02)
        return step()

    async def main():
        async with AsyncLLM(text_engine) as llm:
            first = asyncio.ensure_future(_collect(llm, "hello", SamplingParams(max_tokens=3, ignore_eos=True)))
            await asyncio.to_thread(stepping.wait)
            second = asyncio.ensure_future(_collect(llm, "other"))
            await asyncio.sleep(0.01)  # its prompt waits for the step to end
            second.cancel()
            assert len(await first) > 0
            assert not text_engine.has_work
            return await _collect(llm, "third")

    monkeypatch.setattr(text_engine, "step", slow_step)
    assert asyncio.run(main()) == LLM(text_engine).generate("third", PARAMS)[0].text


def test_a_caller_whose_loop_is_gone_does_not_end_the_engine(text_engine):
    alone = LLM(text_engine).generate("other", PARAMS)[0].text
    llm = AsyncLLM(text_engine)
    loop = asyncio.new_event_loop()
    stream = llm.stream("hello", SamplingParams(max_tokens=80, ignore_eos=True))
    loop.run_until_complete(anext(stream))
    loop.close()
    assert asyncio.run(_collect(llm, "other")) == alone
    assert llm.failure is None
    llm.close()


def test_prompts_opened_together_are_all_in_the_engine_or_none(text_engine):
    async def main():
        async with AsyncLLM(text_engine) as llm:
            with pytest.raises(EnginewrightError, match="the prompt has token 260; this model's tokens are 0 to 259"):
                async with llm.open(["fine", [65, 260]], PARAMS):
                    pass
            assert not text_engine.has_work
            async with llm.open(["hello", "other"], PARAMS) as request:
                async for _ in request.deltas:
                    pass
            return [completion.text for completion in request.completions]

    alone = [output.text for output in LLM(text_engine).generate(["hello", "other"], PARAMS)]
    assert asyncio.run(main()) == alone


def test_an_async_caller_sees_a_refused_prompt(text_engine):
    async def main():
        async with AsyncLLM(text_engine) as llm:
            await _collect(llm, "")

    with pytest.raises(EnginewrightError, match="the prompt is empty"):
        asyncio.run(main())


def test_a_failing_step_fails_every_stream_and_later_calls(text_engine, monkeypatch):
    async def main():
        async with AsyncLLM(text_engine) as llm:
            first = asyncio.ensure_future(_collect(llm, "hello"))
            second = asyncio.ensure_future(_collect(llm, "other"))
            results = await asyncio.gather(first, second, return_exceptions=True)
            late = await asyncio.gather(_collect(llm, "late"), return_exceptions=True)
            return results + late

    def broken(*_):
        raise RuntimeError("device lost")

    monkeypatch.setattr(text_engine.engine.backend, "step", broken)
    assert [str(result) for result in asyncio.run(main())] == ["device lost"] * 3


def test_a_closed_async_llm_says_so(text_engine):
    async def main():
        llm = AsyncLLM(text_engine)
        llm.close()
        await _collect(llm, "hello")

    with pytest.raises(EnginewrightError, match="closed"):
        asyncio.run(main())
