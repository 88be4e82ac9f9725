"""Rows of profiles: what each op of a pass takes beside its roofline, and what memory is for."""

from collections.abc import Iterator
from dataclasses import asdict

from bench.gpu.lines import Line, make_backend
from bench.gpu.models import RandomCheckpoint
from bench.gpu.shapes import SHAPES
from runtime.benchmark.profile import profile_engine
from runtime.benchmark.profile_text import as_text
from runtime.benchmark.settings import ProfileSettings
from runtime.engine import Engine


def profile(model: str) -> Iterator[Line]:
    """One request of 512 tokens, and 32 of 64."""
    spec = SHAPES[model]
    engine = Engine(make_backend(RandomCheckpoint(spec)))
    for batch_size, prompt_len in ((1, 512), (32, 64)):
        settings = ProfileSettings(batch_size, prompt_len)
        found = profile_engine(engine, spec, settings)
        yield {"metric": "profile", **asdict(settings), **asdict(found), "text": as_text(found, settings)}
