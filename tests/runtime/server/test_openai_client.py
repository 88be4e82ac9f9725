"""The official client against the server, over a real socket: it works unchanged, and gets what the engine says."""

import asyncio

import openai
import pytest

from runtime.llm import LLM
from runtime.sampling import SamplingParams
from runtime.text_engine import TextEngine
from tests.runtime.server.harness import running
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


def test_sampling_fields_reach_the_engine(client, expected):
    options = {"temperature": 0.9, "top_p": 0.95, "seed": 7, "n": 3, "max_tokens": 10}
    extras = {"top_k": 50, "min_p": 0.01, "ignore_eos": True}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=extras, **options)
    alone = expected.chat(MESSAGES, SamplingParams(**options, **extras))
    assert [choice.message.content for choice in answer.choices] == [c.text for c in alone.completions]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 30


def test_streamed_samples_are_told_apart_by_their_index(client):
    options = {"temperature": 0.9, "seed": 7, "n": 3, "max_tokens": 10, "model": "tiny", "messages": MESSAGES}
    whole = client.chat.completions.create(**options)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_stop_string_ends_the_text_before_it(client, expected):
    free = expected.generate(PROMPT, SamplingParams(max_tokens=12, ignore_eos=True))[0].text
    stop = free[4:6]
    options = {**GREEDY, "prompt": PROMPT, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(stop=[stop, "never said"], **options)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (free[: free.index(stop)], "stop")
    assert client.completions.create(stop=stop, **options).choices[0].text == answer.choices[0].text


def test_completions_take_prompts_in_all_four_forms(client, expected, tokenizer):
    texts = [PROMPT, "other"]
    ids = [tokenizer.encode(text) for text in texts]
    alone = [output.text for output in expected.generate(texts, SamplingParams(max_tokens=12))]
    for prompt, answers in ((texts[0], alone[:1]), (texts, alone), (ids[0], alone[:1]), (ids, alone)):
        answer = client.completions.create(prompt=prompt, **GREEDY)
        assert [choice.text for choice in answer.choices] == answers
        assert answer.usage.prompt_tokens == sum(map(len, ids[: len(answers)]))


def test_a_completion_has_sixteen_tokens_unless_asked_otherwise(client):
    answer = client.completions.create(model="tiny", prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_chat_logprobs_are_the_engines_with_the_bytes_of_each_token(client, expected):
    answer = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    entries = answer.choices[0].logprobs.content
    alone = expected.chat(MESSAGES, SamplingParams(max_tokens=12, logprobs=2)).completions[0]
    assert [entry.logprob for entry in entries] == [entry.chosen for entry in alone.logprobs]
    assert [[top.logprob for top in entry.top_logprobs] for entry in entries] == [
        [logprob for _, logprob in entry.top] for entry in alone.logprobs
    ]
    text = bytes(byte for entry in entries for byte in entry.bytes).decode(errors="replace")
    assert text.removesuffix("<|end|>") == answer.choices[0].message.content
    streamed = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True, **GREEDY)
    assert [e for chunk in streamed if chunk.choices[0].logprobs for e in chunk.choices[0].logprobs.content] == entries


def test_completion_logprobs_have_the_older_shape(client):
    answer = client.completions.create(prompt=PROMPT, logprobs=3, **GREEDY).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) > 4
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert logprobs.text_offset[-1] <= len(answer.text)


def test_streams_say_which_tokens_were_drafted_where_asked(drafting_llm, client):
    options = {"prompt": "hello", "stream": True, "logprobs": 0, **GREEDY}
    with running(drafting_llm) as (_, address), openai.OpenAI(base_url=f"{address}/v1", api_key="none") as drafting:
        chunks = list(drafting.completions.create(**options, extra_body={"enginewright": {"drafted": True}}))
    flags = [chunk.choices[0].model_extra["enginewright"]["drafted"] for chunk in chunks]
    drafted = drafting_llm.text_engine.engine.speculation.snapshot()
    assert len(flags) == 12
    assert flags[0] is False  # the prompt's own
    assert 0 < sum(flags) <= drafted.num_accepted_tokens
    plain = list(client.completions.create(**options))
    assert [chunk.choices[0].text for chunk in plain] == [chunk.choices[0].text for chunk in chunks]
    assert "enginewright" not in plain[0].choices[0].model_extra


def test_counts_so_far_come_with_every_chunk_where_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.completions.create(prompt="hello", stream=True, stream_options=options, logprobs=0, **GREEDY))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == [*range(1, len(chunks)), len(chunks) - 1]


def test_models_are_listed_and_retrieved(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by, model.max_model_len) == ("tiny", "enginewright", 96)
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' is not here; this server has 'tiny'"):
        client.models.retrieve("gpt-9")


def test_the_clients_exceptions_carry_the_servers_reason(client):
    with pytest.raises(openai.BadRequestError, match="temperature is -1") as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    assert caught.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.code == "model_not_found"


def test_many_clients_at_once_get_what_each_would_get_alone(address, expected):
    prompts = [f"prompt {number}" for number in range(12)]
    alone = [output.text for output in expected.generate(prompts, SamplingParams(max_tokens=12))]

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as many:

            async def streamed(prompt):
                stream = await many.completions.create(prompt=prompt, stream=True, **GREEDY)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(streamed, prompts))

    assert asyncio.run(main()) == alone
