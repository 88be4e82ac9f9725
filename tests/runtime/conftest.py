"""One tiny model for all tests of the runtime."""

import pytest

from runtime.text_engine import TextEngine
from tests.runtime.tiny import make_checkpoint, make_engine, make_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def text_engine(checkpoint, tokenizer):
    return TextEngine(make_engine(checkpoint), tokenizer)
