"""Training data of the user's: files and data sets give the same token ids, and what cannot be read says so."""

import json
import sys

import pytest

from pipelines.build import text_files
from pipelines.draft.texts import DatasetAddress, parse_dataset, read_token_ids
from runtime.errors import EnginewrightError
from tests.runtime.tiny import EOS, make_tokenizer

CONVERSATION = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write_lines(path, *records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_an_answer_follows_the_chat_template_and_every_text_ends(tmp_path, tokenizer):
    file = write_lines(
        tmp_path / "a.jsonl", {"text": "one"}, {"messages": CONVERSATION}, {"messages": CONVERSATION[:1]}
    )
    answer = [*tokenizer.encode_chat(CONVERSATION[:1]), *tokenizer.encode("three", add_special_tokens=False), EOS]
    expected = [[*tokenizer.encode("one"), EOS], answer, [*tokenizer.encode("two"), EOS]]
    assert read_token_ids(str(file), tokenizer) == expected
    whole = tmp_path / "a.txt"
    whole.write_text("one")
    assert read_token_ids(str(whole), tokenizer) == expected[:1]


@pytest.mark.parametrize("records", [[{"text": "one"}, {"text": "two"}], [{"messages": CONVERSATION}]])
def test_a_data_set_gives_what_its_file_gives(tmp_path, tokenizer, monkeypatch, records):
    pytest.importorskip("datasets", reason="the extra draft is not installed")
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = write_lines(tmp_path / "set/train.jsonl", *records)
    assert read_token_ids(f"datasets:{file.parent}", tokenizer) == read_token_ids(str(file), tokenizer)
    with pytest.raises(EnginewrightError, match="cannot be loaded"):
        read_token_ids(f"datasets:{file.parent}#nosuch", tokenizer)
    assert text_files(f"datasets:{file.parent}") == (file,)
    other = write_lines(tmp_path / "other/train.jsonl", {"words": "one"})
    with pytest.raises(EnginewrightError, match="has the columns words; it must have text or messages"):
        read_token_ids(f"datasets:{other.parent}", tokenizer)


def test_the_missing_library_is_one_line_that_names_the_extra(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnginewrightError, match=r"install enginewright\[draft\]"):
        read_token_ids("datasets:org/name", tokenizer)


def test_an_address_has_a_name_a_config_and_a_split():
    assert parse_dataset("datasets:org/name:en#train[:5%]") == DatasetAddress("org/name", "en", "train[:5%]")
    assert parse_dataset("datasets:org/name") == DatasetAddress("org/name", None, "train")
    assert parse_dataset("a.jsonl") is None
    assert text_files("datasets:org/nowhere") == ()
    with pytest.raises(EnginewrightError, match="it must be a file or datasets:"):
        parse_dataset("datasets:org/name#")


def test_an_entry_without_text_is_one_line(tmp_path, tokenizer):
    file = write_lines(tmp_path / "a.jsonl", {"words": "one"})
    with pytest.raises(EnginewrightError, match=r'with "text" or "messages"'):
        read_token_ids(str(file), tokenizer)
