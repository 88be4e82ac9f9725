"""Rows of a finished bundle: real weights, real text, and the drafter that it carries."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bench.gpu import transformers_baseline
from bench.gpu.lines import EAGER, REPEATS, Line
from runtime.backends.base import Backend
from runtime.benchmark.ladder import ladder
from runtime.benchmark.session import make_session
from runtime.benchmark.settings import SessionSizes
from runtime.benchmark.stack import run_batches, run_stack
from runtime.formats.bundle import Bundle, open_bundle
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.manifest import ATTESTATIONS_DIR
from runtime.formats.reference import REFERENCE_FILE, Reference
from runtime.loading import load_drafting
from runtime.speculation.loading import Drafting, SpeculationOptions

TARGET = "cuda"
ENOUGH_S = 12.0  # of a slow stage's timed runs, which differ by some percent


def speculation(bundle: Path, num_prompts: int = 12, new_tokens: int = 128) -> Iterator[Line]:
    """Answers to shipped prompts, plainly and with every tree that the head was measured with."""
    from bench.gpu.bundle import measure

    return (line for line in measure(open_bundle(bundle), num_prompts, new_tokens, 1) if line["kind"] != "device")


def stack(bundle: Path, sizes: SessionSizes | None = None) -> Iterator[Line]:
    """Where the speed comes from: one switch at a time, transformers' eager loop first."""
    transformers_baseline.start_up()
    return _stack(open_bundle(bundle), sizes or SessionSizes())


def _stack(opened: Bundle, sizes: SessionSizes) -> Iterator[Line]:
    checkpoint, engine_dir = opened.checkpoint(), opened.engine_dir(TARGET)
    reference = Reference.load(opened.path / ATTESTATIONS_DIR / "verify" / REFERENCE_FILE)
    session = make_session(reference.text_ids, reference.prompts, sizes)
    baseline = transformers_baseline.Batches(transformers_baseline.load(checkpoint.spec))
    for sample in run_batches(EAGER, baseline, session, REPEATS, ENOUGH_S):
        yield {"metric": "stack", **asdict(sample)}
    del baseline

    def draft(backend: Backend) -> Drafting:
        return load_drafting(backend, checkpoint, engine_dir, opened.draft_dir, SpeculationOptions())

    stages = ladder(checkpoint, EnginePlan.read(engine_dir), sizes, draft if opened.draft_dir else None)
    for sample in run_stack(stages, session, REPEATS, lambda share, text: None, ENOUGH_S):
        yield {"metric": "stack", **asdict(sample)}
