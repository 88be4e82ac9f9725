"""Text in and out: characters are never cut, stop strings never leak, templates stay in their sandbox."""

import json

import pytest

from runtime.errors import EnginewrightError
from runtime.text.chat import ChatTemplate
from runtime.text.stream import TextStream
from runtime.text.tokenizer import Tokenizer
from tests.runtime.tiny import make_tokenizer

TEXTS = ["plain words", "naïve café", "日本語のテキスト", "👩‍💻 and 🏳️‍🌈", "tabs\tand\nlines\n\n  x = 1"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_whole_characters_that_add_up_to_the_text(tokenizer, text):
    stream = TextStream(tokenizer, tokenizer.encode("prompt: "), ())
    deltas = [stream.push(token_id).text for token_id in tokenizer.encode(text)]
    deltas.append(stream.finish().text)
    assert "".join(deltas) == text == stream.text
    assert not any("\ufffd" in delta for delta in deltas)


def test_an_incomplete_character_shows_only_at_the_end(tokenizer):
    stream = TextStream(tokenizer, [], ())
    for token_id in tokenizer.encode("é")[:1]:
        assert stream.push(token_id).text == ""
    assert stream.finish().text == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello world", ("wor",), "hello "),
        ("a STOP b", ("STOP", "OP"), "a "),
        ("aab", ("ab",), "a"),
        ("no stop here", ("zzz",), "no stop here"),
        ("ends with wo", ("wor",), "ends with wo"),
        ("日本語", ("本",), "日"),
    ],
)
def test_nothing_of_a_stop_string_or_after_it_is_given_out(tokenizer, text, stop, expected):
    stream = TextStream(tokenizer, [], stop)
    given = ""
    for token_id in tokenizer.encode(text):
        delta = stream.push(token_id)
        given += delta.text
        assert expected.startswith(given)
        if delta.stopped:
            break
    given += stream.finish().text
    assert given == stream.text == expected


def test_the_worked_example_of_the_docstring():
    class Pieces:
        """A tokenizer whose token i is the i-th piece."""

        pieces = ("He", "llo", " wo", "rld")

        def decode(self, token_ids):
            return "".join(self.pieces[token_id] for token_id in token_ids)

    stream = TextStream(Pieces(), [], ("wor",))
    assert [stream.push(token_id) for token_id in range(4)] == [("He", False), ("llo", False), (" ", False), ("", True)]


def test_special_tokens_are_single_ids_and_invisible(tokenizer):
    token_ids = tokenizer.encode("<|user|>hi")
    assert len(token_ids) == 3
    assert tokenizer.decode(token_ids) == "hi"


def test_a_chat_is_rendered_and_encoded(tokenizer):
    token_ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == "<|user|>hi<|end|><|assistant|>"


def test_no_template_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(EnginewrightError, match="no chat template; use generate"):
        make_tokenizer(tmp_path, template=None).encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in %}", "does not compile"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "refused"),
        ("{{ messages.append(1) }}", "refused"),
    ],
)
def test_a_wrong_or_hostile_template_is_refused(template, message):
    with pytest.raises(EnginewrightError, match=message):
        ChatTemplate(template, "", "").render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("file", ["tokenizer.json", "generation.json"])
def test_a_damaged_tokenizer_file_is_named(tmp_path, file):
    make_tokenizer(tmp_path)
    (tmp_path / file).write_text(json.dumps({"wrong": 1}))
    with pytest.raises(EnginewrightError, match=file):
        Tokenizer(tmp_path)
