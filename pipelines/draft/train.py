"""A head for a checkpoint, from settings to files: data, vocabulary, training, statistics.

The best head so far is always complete in the stage's scratch folder, with its recipe and its curves: a build that is
cut short leaves a head behind.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.config import DraftTrainConfig
from pipelines.draft.corpus import Corpus, pack_texts, with_hidden
from pipelines.draft.evaluation import GreedyPath, greedy_paths, walk_paths
from pipelines.draft.recipe import write_trained
from pipelines.draft.synthesis import Synthesis, SynthesisSettings, make_scripts, synthesise
from pipelines.draft.target import TargetModel
from pipelines.draft.texts import read_token_ids
from pipelines.draft.training import LoopSettings, StepMetrics, Training, draft_vocabulary, run_training
from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint
from runtime.formats.digest import sha256_file
from runtime.speculation.policy import SMALL_TREES, TINY_TREES
from runtime.speculation.redrafter.head_file import (
    VOCAB_IDS,
    Dialect,
    HeadConfig,
    HeadDescription,
    TreeStatistics,
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
TREES = (
    *TINY_TREES,
    *SMALL_TREES,
    *(
        TreeShape(num_nodes, num_beams, depth)
        for num_nodes, beams, depths in (
            (8, (1, 2), (3, 4, 5)), (12, (2, 4, 6), (4, 5, 6)), (32, (4, 8), (5, 6, 7)), (64, (8, 24), (5, 6, 7, 9)),
        )
        for num_beams in beams
        for depth in depths
    ),
)  # fmt: skip
HELD_OUT_TREE = TreeShape(64, 16, 6)
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

    Goes on from `scratch_dir` where an earlier try on the same data was killed; the data are made again from their
    seed.
    """
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_DIR)
    target = TargetModel(checkpoint, getattr(torch, checkpoint.config.dtype), config.device)
    corpus = make_corpus(config, target, tokenizer, scratch_dir, progress)
    recipe = make_recipe(config, corpus, target, base[0])
    held_out = paths_of(HELD_OUT_FILE, target, tokenizer, config.new_tokens)
    vocab_ids = draft_vocabulary(corpus, target.spec.vocab_size, config.draft_vocab_size, tokenizer.eos_token_ids)
    hidden = target.spec.hidden_size
    dialect: Dialect = config.dialect  # type: ignore[assignment] # the configuration checked it
    head = HeadConfig(hidden, hidden, config.num_blocks, target.spec.vocab_size, len(vocab_ids), dialect=dialect)
    training = Training(head, vocab_ids, corpus, target, loop_settings(config))
    folder = scratch_dir / f"training-{recipe['data']['data_sha256'][:12]}"
    folder.mkdir(exist_ok=True)
    described = HeadDescription(head, *base, "")

    def evaluate(current: Training) -> float:
        return measure(head, current.tensors(target.dtype), target, held_out, HELD_OUT_TREE).accepted_length["mean"]

    best = run_training(
        training, folder / "state.pt", config.evaluate_every, _reporter(folder, config, progress), evaluate,
        lambda tensors: write_trained(folder, described, recipe, _stored(tensors), folder / "curves.jsonl"),
    )  # fmt: skip
    progress.advance(0.9, text="measuring trees on prompts")
    prompts = paths_of(PROMPTS_FILE, target, tokenizer, config.new_tokens)
    trees = tuple(measure(head, _stored(best), target, prompts, shape) for shape in TREES)
    described = replace(described, trees=trees)
    return write_trained(out_dir, described, recipe, _stored(best), folder / "curves.jsonl")


def _stored(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x if name == VOCAB_IDS else x.to(torch.bfloat16) for name, x in tensors.items()}


def make_corpus(
    config: DraftTrainConfig, target: TargetModel, tokenizer: Tokenizer, scratch_dir: Path, progress: "Progress"
) -> Corpus:
    """The user's texts, or the target's own conversations where none are named; with hidden states if they fit."""
    if config.texts:
        corpus = pack_texts(read_token_ids(config.texts, tokenizer), min(512, target.spec.max_position_embeddings))
    else:
        kinds = json.loads(OPENINGS_FILE.read_text(encoding="utf-8"))
        openings = [opening for kind in kinds.values() for opening in kind] + [""] * BARE_OPENINGS
        settings = synthesis_settings(config)
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
    drafter = make_redrafter(head, tensors, target.embedding, target.lm_head, "torch")
    drafter.draft_pass = None  # it is for the few requests of a step; here all prompts go at once
    return walk_paths(drafter, paths, shape)


def make_recipe(config: DraftTrainConfig, corpus: Corpus, target: TargetModel, model: str) -> dict[str, Any]:
    """What decides the head: settings, what they stand for, the data, and the machine, which has its own roundings."""
    written = {
        "openings_sha256": sha256_file(OPENINGS_FILE),
        "bare_openings": BARE_OPENINGS,
        "settings": asdict(synthesis_settings(config)),
    }
    return {
        "model": model,
        "settings": asdict(config),
        "data": {
            "kind": "texts" if config.texts else "self-synthesis",
            **({} if config.texts else written),
            "tokens": corpus.num_tokens,
            "row_tokens": corpus.token_ids.shape[1],
            "learnt_share": round(float(corpus.learnt.float().mean()), 4),
            "data_sha256": corpus.digest(),
            "data_sha256_over": "token ids (int32), positions in their text (int16), learnt (bool), each row by row",
        },
        "loop": asdict(loop_settings(config)),
        "weights_dtype": str(target.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else str(target.device),
        "torch": torch.__version__,
        "selected_by": {"held_out": HELD_OUT_FILE.name, "tree": asdict(HELD_OUT_TREE), "figure": "accepted length"},
        "evaluation": {
            "prompts": PROMPTS_FILE.name,
            "new_tokens": config.new_tokens,
            "decoding": "greedy, chat template, to that many tokens or the end of the text",
            "figure": "(tokens - 1) / verify steps, summed by kind before the division; mean is over the four kinds",
        },
    }


def synthesis_settings(config: DraftTrainConfig) -> SynthesisSettings:
    return SynthesisSettings(
        config.num_sequences, config.tokens_per_sequence, config.seed, answer_tokens=config.answer_tokens
    )


def loop_settings(config: DraftTrainConfig) -> LoopSettings:
    return LoopSettings(
        num_steps=config.num_steps, batch_positions=config.batch_positions, accumulation=config.accumulation,
        future_tokens=config.future_tokens, learning_rate=config.learning_rate, hard_share=config.hard_share,
        warmup_steps=max(1, min(200, config.num_steps // 10)), seed=config.seed,
    )  # fmt: skip


def _reporter(folder: Path, config: DraftTrainConfig, progress: "Progress") -> Callable[[int, StepMetrics], None]:
    def report(step: int, metrics: StepMetrics) -> None:
        with (folder / "curves.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics._asdict()}) + "\n")
        length = f"held-out accepted length {metrics.accepted_length:.3f}"
        progress.advance(0.4 + 0.5 * step / config.num_steps, text=f"step {step}, loss {metrics.loss:.3f}, {length}")

    return report
