"""Open what the fetch stage stored: weights and tokenizer, whichever format they are in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipelines.convert import gguf_tokenizer, hf_tokenizer
from pipelines.convert.gguf_file import GgufFile
from pipelines.convert.gguf_source import GgufSource
from pipelines.convert.hf_source import HfSource
from pipelines.convert.source import WeightSource
from pipelines.convert.tokenizer_files import TokenizerParts


class OpenSource(NamedTuple):
    weights: WeightSource
    tokenizer: TokenizerParts


@contextmanager
def open_source(fetched: Path) -> Iterator[OpenSource]:
    """Open the fetch stage's folder.

    Raises:
        EnginewrightError: it holds no model that can be converted.
    """
    description = json.loads((fetched / "source.json").read_text(encoding="utf-8"))
    folder = fetched / "source"
    if description["kind"] == "gguf":
        file = GgufFile(folder / description["files"][0]["path"])
        gguf = GgufSource(file)
        yield OpenSource(gguf, gguf_tokenizer.read_tokenizer(file, gguf.spec.vocab_size))
        return
    yield OpenSource(HfSource(folder), hf_tokenizer.read_tokenizer(folder))
