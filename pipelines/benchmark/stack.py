"""Measures a stack of switches on shipped prompts, transformers' eager loop first, and draws it as a waterfall."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipelines.benchmark.stack_plot import draw_stack
from pipelines.data import DRAFT_PROMPTS_FILE, encode_prompt, load_text, read_prompts
from runtime.backends.base import Backend
from runtime.benchmark.ladder import ladder
from runtime.benchmark.session import Session, make_session
from runtime.benchmark.settings import SessionSizes
from runtime.benchmark.stack import StackRow, run_batches, run_stack, summarise_stack
from runtime.benchmark.systems import System
from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.loading import load_drafting
from runtime.speculation.loading import Drafting, SpeculationOptions
from runtime.text.tokenizer import Tokenizer

SAMPLES_FILE, PLOT_FILE = "stack.jsonl", "stack.png"
NAIVE = "transformers eager"


def measure_stack(
    checkpoint: Checkpoint,
    engine_dir: Path,
    draft_dir: Path | None,
    naive: System | None,
    sizes: SessionSizes,
    repeats: int,
    subtitle: str,
    out_dir: Path,
    report: Callable[[float, str], None],
) -> list[StackRow]:
    """Write every timed run to stack.jsonl and the plot to stack.png; return a row per stage.

    What drafts is what the bundle carries, prompt lookup where it carries nothing.
    """
    plan = EnginePlan.read(engine_dir)
    sizes = sizes.fitted(plan.max_seq_len)
    session = _session(Tokenizer(checkpoint.path / TOKENIZER_DIR), sizes)

    def draft(backend: Backend) -> Drafting:
        for drafter in ("bundle", "ngram"):
            options = SpeculationOptions(drafter=drafter)
            drafting = load_drafting(backend, checkpoint, engine_dir, draft_dir, options)
            if drafting.drafter is not None:
                break
        return drafting

    report(0.0, NAIVE)
    samples = list(run_batches(NAIVE, naive, session, repeats)) if naive is not None else []
    samples += run_stack(ladder(checkpoint, plan, sizes, draft), session, repeats, report)
    (out_dir / SAMPLES_FILE).write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
    rows = summarise_stack(samples)
    draw_stack(rows, subtitle).savefig(out_dir / PLOT_FILE, dpi=140)
    return rows


def _session(tokenizer: Tokenizer, sizes: SessionSizes) -> Session:
    """The perplexity text before questions through the chat template."""
    own = [encode_prompt(tokenizer, prompt, chat=True) for prompt in read_prompts(DRAFT_PROMPTS_FILE)]
    return make_session(tokenizer.encode(load_text()), own, sizes)
