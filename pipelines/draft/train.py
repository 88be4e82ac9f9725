"""A head for a checkpoint, from settings to files: data, vocabulary, training, statistics."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipelines.config import DraftTrainConfig
from pipelines.digest import json_digest
from pipelines.draft.corpus import Corpus, pack_texts, with_hidden
from pipelines.draft.evaluation import GreedyPath, greedy_paths, walk_paths
from pipelines.draft.synthesis import Synthesis, SynthesisSettings, make_scripts, synthesise
from pipelines.draft.target import TargetModel
from pipelines.draft.texts import read_token_ids
from pipelines.draft.training import LoopSettings, StepMetrics, Training, draft_vocabulary, run_training
from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
from runtime.speculation.redrafter.head_file import (
    VOCAB_IDS,
    Dialect,
    HeadConfig,
    HeadDescription,
    TreeStatistics,
    write_head,
)
from runtime.speculation.redrafter.loading import make_redrafter
from runtime.speculation.tree import TreeShape
from runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pipelines.stage import Progress

DATA = Path(__file__).parents[1] / "data"
OPENINGS_FILE, PROMPTS_FILE, HELD_OUT_FILE = (
    DATA / name for name in ("draft_openings.json", "draft_prompts.json", "prompts.json")
)
TREES = (TreeShape(12, 4, 5), TreeShape(32, 8, 6), TreeShape(64, 16, 7))
BARE_OPENINGS = 12  # conversations that the target opens itself, to so many of each kind's openings


def train_head(
    config: DraftTrainConfig,
    checkpoint: Checkpoint,
    base: tuple[str, str],
    out_dir: Path,
    scratch_dir: Path,
    progress: "Progress",
) -> HeadDescription:
    """Train, measure and write a head with its curves; `base` is the model's name and digest.

    Goes on from `scratch_dir` where an earlier try was killed; the corpus is made again from its seed.
    """
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_DIR)
    target = TargetModel(checkpoint, getattr(torch, checkpoint.config.dtype), config.device)
    corpus = make_corpus(config, target, tokenizer, scratch_dir, progress)
    held_out = paths_of(HELD_OUT_FILE, target, tokenizer, config.new_tokens)
    vocab_ids = draft_vocabulary(corpus, target.spec.vocab_size, config.draft_vocab_size, tokenizer.eos_token_ids)
    hidden = target.spec.hidden_size
    dialect: Dialect = config.dialect  # type: ignore[assignment] # the configuration checked it
    head = HeadConfig(hidden, hidden, config.num_blocks, target.spec.vocab_size, len(vocab_ids), dialect=dialect)
    training = Training(head, vocab_ids, corpus, target, loop_settings(config))
    curves = scratch_dir / "curves.jsonl"

    def evaluate(current: Training) -> float:
        return measure(head, current.tensors(target.dtype), target, held_out, TREES[1]).accepted_length["mean"]

    best = run_training(
        training, scratch_dir / "state.pt", config.evaluate_every, _reporter(curves, config, progress), evaluate
    )
    stored = {name: x if name == VOCAB_IDS else x.to(torch.bfloat16) for name, x in best.items()}
    prompts = paths_of(PROMPTS_FILE, target, tokenizer, config.new_tokens)
    trees = tuple(measure(head, stored, target, prompts, shape) for shape in TREES)
    recipe = {"settings": asdict(config), "data_sha256": corpus.digest(), "tokens": corpus.num_tokens}
    description = HeadDescription(head, *base, json_digest(recipe), trees)
    write_head(out_dir, description, stored)
    (out_dir / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    (out_dir / "curves.jsonl").write_bytes(curves.read_bytes())
    return description


def make_corpus(
    config: DraftTrainConfig, target: TargetModel, tokenizer: Tokenizer, scratch_dir: Path, progress: "Progress"
) -> Corpus:
    """The user's texts, or the target's own conversations where none are named; with hidden states if they fit."""
    if config.texts:
        corpus = pack_texts(read_token_ids(config.texts, tokenizer), min(512, target.spec.max_position_embeddings))
    else:
        kinds = json.loads(OPENINGS_FILE.read_text(encoding="utf-8"))
        openings = [opening for kind in kinds.values() for opening in kind] + [""] * BARE_OPENINGS
        settings = SynthesisSettings(
            config.num_sequences, config.tokens_per_sequence, config.seed, answer_tokens=config.answer_tokens
        )
        scripts = make_scripts(tokenizer, openings, target.device)
        synthesis = Synthesis(target, scripts, tokenizer.eos_token_ids, settings)
        on_device = target.device.type != "cpu"
        corpus = synthesise(
            synthesis, on_device, lambda done, total: progress.advance(0.4 * done / total, text="writing conversations")
        )
    return with_hidden(corpus, target, config.hidden_bytes, scratch_dir / "hidden.bin")


def paths_of(file: Path, target: TargetModel, tokenizer: Tokenizer, new_tokens: int) -> list[GreedyPath]:
    """Greedy paths from shipped prompts of the four kinds, through the chat template where there is one."""
    prompts = []
    for entry in json.loads(file.read_text(encoding="utf-8")):
        if entry["kind"] in ("chat", "prose", "code", "reasoning"):
            messages = [{"role": "user", "content": entry["text"]}]
            ids = tokenizer.encode_chat(messages) if tokenizer.has_chat_template else tokenizer.encode(entry["text"])
            prompts.append((entry["kind"], ids))
    return greedy_paths(target, prompts, new_tokens, tokenizer.eos_token_ids)


def measure(
    head: HeadConfig, tensors: dict[str, torch.Tensor], target: TargetModel, paths: list[GreedyPath], shape: TreeShape
) -> TreeStatistics:
    return walk_paths(make_redrafter(head, tensors, target.embedding, target.lm_head, "torch"), paths, shape)


def loop_settings(config: DraftTrainConfig) -> LoopSettings:
    return LoopSettings(
        num_steps=config.num_steps, batch_positions=config.batch_positions, accumulation=config.accumulation,
        future_tokens=config.future_tokens, learning_rate=config.learning_rate, hard_share=config.hard_share,
        warmup_steps=max(1, min(200, config.num_steps // 10)), seed=config.seed,
    )  # fmt: skip


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a training as (step, value): loss, top-1 share by future token, held-out accepted length.

    A step that was reported by a killed build and again by the next one counts once.
    """
    rows = {row["step"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    curves: dict[str, list[tuple[int, float]]] = {"train_loss": [], "held_out_accepted_length": []}
    for step, row in sorted(rows.items()):
        curves["train_loss"].append((step, row["loss"]))
        curves["held_out_accepted_length"].append((step, row["accepted_length"]))
        for position, share in enumerate(row["top1"], 1):
            curves.setdefault(f"train_top1_{position}", []).append((step, share))
    return curves


def _reporter(curves: Path, config: DraftTrainConfig, progress: "Progress") -> Callable[[int, StepMetrics], None]:
    def report(step: int, metrics: StepMetrics) -> None:
        with curves.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics._asdict()}) + "\n")
        progress.advance(0.4 + 0.5 * step / config.num_steps, text=f"step {step}, loss {metrics.loss:.3f}")

    return report
