"""Structured output: whatever the model would rather say, the text becomes what was asked for."""

import asyncio
import functools
import json
import sys

import llguidance
import pytest
import tokenizers

from runtime.async_llm import AsyncLLM
from runtime.errors import EnginewrightError
from runtime.llm import LLM
from runtime.sampling import SamplingParams, StructuredOutput
from runtime.sampling_rules.grammar import GrammarCompiler
from runtime.text.tokenizer import GENERATION_FILE, Tokenizer
from runtime.text_engine import TextEngine
from tests.runtime.tiny import make_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Émile", "\u5c0f"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "likes": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
FEW_SPACES = {220: -20.0, 198: -20.0, 197: -20.0, 201: -20.0}  # " ", "\n", "\t", "\r" of the tiny tokenizer


@pytest.fixture
def llm(text_engine):
    return LLM(text_engine)


def params(schema=None, **others):
    structured = StructuredOutput.from_schema(schema) if schema is not None else StructuredOutput()
    return SamplingParams(**{"max_tokens": 80, "structured": structured, "logit_bias": FEW_SPACES, **others})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_schema_gives_json_that_follows_it_and_ends(llm, temperature):
    output = llm.generate("a person: ", params(PERSON, temperature=temperature, seed=3, n=6 if temperature else 1))[0]
    for completion in output.completions:
        person = json.loads(completion.text)
        assert person.keys() == {"name", "age", "likes"}
        assert person["name"] in PERSON["properties"]["name"]["enum"]
        assert person["age"] in range(100)
        assert len(person["likes"]) <= 2
        assert completion.finish_reason == "stop"
    assert len({completion.text for completion in output.completions}) > len(output.completions) / 2


def test_json_object_gives_an_object(llm):
    close = {llm.text_engine.tokenizer.encode(char)[0]: 10.0 for char in '"}'}
    completion = llm.generate("x", params(logit_bias={**FEW_SPACES, **close}))[0].completions[0]
    assert isinstance(json.loads(completion.text), dict)
    assert completion.finish_reason == "stop"


def test_min_tokens_gives_way_once_the_text_can_only_end(llm):
    completion = llm.generate("x", params({"const": True}, min_tokens=50))[0].completions[0]
    assert completion.text == "true"
    assert completion.finish_reason == "stop"


def test_a_stop_by_length_leaves_the_json_incomplete(llm):
    completion = llm.generate("x", params(PERSON, max_tokens=3))[0].completions[0]
    assert completion.finish_reason == "length"
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(completion.text)


def test_a_grammar_that_proves_too_complex_ends_its_request_with_an_error_and_no_other(text_engine, monkeypatch):
    limits = functools.partial(llguidance.LLParserLimits, step_max_items=1)
    monkeypatch.setattr(llguidance, "LLParserLimits", limits)
    broken, fine = LLM(text_engine).generate(["x", "y"], [params(PERSON), SamplingParams(max_tokens=5)])
    assert broken.completions[0].finish_reason == "error"
    assert "limit" in broken.completions[0].error
    assert fine.completions[0].finish_reason == "length"
    assert fine.completions[0].error is None


def test_streams_side_by_side_get_what_they_would_get_alone(text_engine):
    schemas = [PERSON, {"const": [1, 2]}, {"enum": ["a", "b"]}]
    alone = [LLM(text_engine).generate("x", params(schema))[0].text for schema in schemas]

    async def collect(llm, schema):
        return "".join([delta.text async for delta in llm.stream("x", params(schema))])

    async def main():
        async with AsyncLLM(text_engine) as llm:
            return await asyncio.gather(*(collect(llm, schema) for schema in schemas))

    assert asyncio.run(main()) == alone


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "thing"}, "the JSON schema cannot be used: .*thing"),
        ({"type": "string", "pattern": "("}, "the JSON schema cannot be used: .*unclosed group"),
        ({"not": {"type": "string"}}, "the JSON schema cannot be used: .*not"),
        ({"$ref": "https://example.org/schema"}, "the JSON schema cannot be used: .*example.org"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "the JSON schema cannot be used: NoExtension"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_at_once_in_one_line(llm, schema, message):
    with pytest.raises(EnginewrightError, match=message) as caught:
        llm.generate("x", params(schema))
    assert "\n" not in str(caught.value)
    assert not llm.text_engine.has_work


@pytest.mark.parametrize("text", ["{oops", "[]", "3", "null", '"a"'])
def test_a_schema_that_is_no_json_object_is_refused(text_engine, text):
    with pytest.raises(EnginewrightError, match="the JSON schema cannot be used: "):
        text_engine.submit("x", SamplingParams(max_tokens=5, structured=StructuredOutput(text)))


def test_structured_output_cannot_ignore_the_end_token():
    with pytest.raises(EnginewrightError, match="ignore_eos is True; it must be False with structured output"):
        params(ignore_eos=True)


def test_a_missing_library_is_named(text_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EnginewrightError, match="needs llguidance, which is not installed: pip install llguidance"):
        text_engine.submit("x", params())
    assert not text_engine.has_work


def test_a_model_without_an_end_token_is_named(text_engine, tmp_path):
    make_tokenizer(tmp_path)
    (tmp_path / GENERATION_FILE).write_text('{"bos_token_id": null, "eos_token_ids": []}')
    engine = TextEngine(text_engine.engine, Tokenizer(tmp_path))
    with pytest.raises(EnginewrightError, match="needs a model with an end token"):
        engine.submit("x", params())


def test_a_tokenizer_that_llguidance_cannot_read_is_named(tmp_path):
    make_tokenizer(tmp_path)
    words = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(EnginewrightError, match="structured output cannot use this model's tokenizer: can't determine"):
        GrammarCompiler(Tokenizer(tmp_path)).compile(StructuredOutput())


def test_a_grammar_is_compiled_once(tokenizer):
    compiler = GrammarCompiler(tokenizer)
    first = compiler.compile(StructuredOutput())
    assert compiler.compile(StructuredOutput()) is first
