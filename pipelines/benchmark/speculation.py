"""Measures speculation on the shipped prompts: plain decoding beside every drafter that an engine can have."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path

from pipelines.data import DRAFT_PROMPTS_FILE, Prompt, encode_prompt, read_prompts
from runtime.benchmark.speculation import KindPrompt, SpeculationRow, run_speculation, summarise_speculation
from runtime.engine import Engine
from runtime.formats.checkpoint import Checkpoint
from runtime.loading import load_drafting
from runtime.speculation.loading import SpeculationOptions
from runtime.text.tokenizer import Tokenizer

SAMPLES_FILE = "speculation.jsonl"


def measure_speculation(
    engine: Engine,
    checkpoint: Checkpoint,
    engine_dir: Path,
    draft_dir: Path | None,
    num_prompts: int,
    new_tokens: int,
    repeats: int,
    out_dir: Path,
    report: Callable[[float, str], None],
) -> list[SpeculationRow]:
    """Write every timed run to speculation.jsonl and return a row per drafter and kind of prompt.

    The prompts were in no head's training data; `num_prompts` of them are taken, one kind after the other.
    """
    report(0.0, "measuring what drafts and steps cost")
    draftings = {}
    for drafter in ("bundle", "ngram"):
        drafting = load_drafting(
            engine.backend, checkpoint, engine_dir, draft_dir, SpeculationOptions(drafter=drafter)
        )  # fmt: skip
        if drafting.drafter is not None:
            draftings[drafting.drafter.name] = drafting
    tokenizer = Tokenizer(checkpoint.path / "tokenizer")
    prompts = [KindPrompt(prompt.kind, encode_prompt(tokenizer, prompt, chat=True)) for prompt in choose(num_prompts)]
    samples = []
    with (out_dir / SAMPLES_FILE).open("w", buffering=1, encoding="utf-8") as file:
        for sample in run_speculation(engine, draftings, prompts, new_tokens, repeats, report):
            samples.append(sample)
            file.write(json.dumps(asdict(sample)) + "\n")
    return summarise_speculation(samples)


def choose(count: int) -> list[Prompt]:
    """The first `count` prompts when kinds take turns.

    Raises:
        EnginewrightError: fewer are shipped.
    """
    every = read_prompts(DRAFT_PROMPTS_FILE)
    by_kind = [[prompt for prompt in every if prompt.kind == kind] for kind in dict.fromkeys(p.kind for p in every)]
    in_turn = [prompt for prompt in chain(*zip_longest(*by_kind)) if prompt is not None]
    return in_turn[:count]
