"""Training a draft head: random runs of positions of a corpus, K future tokens each, resumable to the exact step.

The target's logits over the draft vocabulary are as dear as the head's own. Positions of a run ask for almost the same
ones, so these are computed once for each position of the text that the batch looks at, not once for each draft of it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipelines.draft.corpus import Corpus, hidden_of
from pipelines.draft.loss import head_loss, targets_of
from pipelines.draft.target import TargetModel
from runtime.errors import EnginewrightError
from runtime.speculation.redrafter.head import DraftHead
from runtime.speculation.redrafter.head_file import PREFIX, VOCAB_IDS, HeadConfig


@dataclass(frozen=True)
class LoopSettings:
    num_steps: int
    batch_positions: int = 32768
    run_len: int = 16  # positions of a batch that follow each other in the corpus, and share most of their labels
    accumulation: int = 1  # batches to one optimizer step
    future_tokens: int = 6  # K
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    hard_share: float = 0.5  # see loss.py
    depth_decay: float = 0.9  # weight of each further token
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0


class Labels(NamedTuple):
    """Which of the target's predictions a batch of P positions with K drafted tokens each is compared with."""

    places: torch.Tensor  # (U,) flat indices of the corpus, whose hidden states predict what follows
    rows: torch.Tensor  # (P, K), which of them is for each drafted token


class StepMetrics(NamedTuple):
    loss: float  # nats per drafted token
    top1: tuple[float, ...]  # share of first choices that are the target's, by future token
    accepted_length: float  # of the averaged head on held-out prompts, tokens per step
    seconds: float  # of training so far, evaluations included


def init_head(config: HeadConfig, lm_head: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Float32 tensors of a new head; blocks start near the identity, rows of its own at the target's `lm_head`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        scale = 0.0 if len(shape) == 1 else shape[1] ** -0.5 * (0.3 if ".layers." in name else 1.0)
        tensors[name] = torch.randn(shape, generator=generator) * scale
    if not config.tied_head and config.exit_dim == config.hidden_size:
        tensors[PREFIX + "lm_head.weight"] = lm_head.detach().float().cpu().clone()
    # The projection starts as the context alone: what the target itself would say next.
    if config.exit_dim == config.hidden_size:
        tensors[PREFIX + "input_proj.weight"][:, : config.hidden_size] += torch.eye(config.hidden_size)
    return tensors


class Training:
    """A head in training. Everything that a later step depends on is in `state_dict`."""

    def __init__(
        self,
        config: HeadConfig,
        vocab_ids: torch.Tensor,
        corpus: Corpus,
        target: TargetModel,
        settings: LoopSettings,
    ) -> None:
        self.config, self.corpus, self.target, self.settings = config, corpus, target, settings
        device = target.device
        self.vocab_ids = vocab_ids.to(device)
        self.compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        initial = init_head(config, target.lm_head, settings.seed)
        self.parameters = {name: torch.nn.Parameter(x.to(device)) for name, x in initial.items()}
        self.ema = {name: x.detach().clone() for name, x in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, betas=(0.9, 0.98),
            weight_decay=settings.weight_decay, fused=device.type == "cuda",
        )  # fmt: skip
        self.step_index = 0
        self._roots = corpus.roots(settings.future_tokens).cpu()  # the host decides what a batch is, without waiting
        if not len(self._roots):
            raise EnginewrightError(
                f"draft data: none of {corpus.num_tokens} tokens is in an answer of three tokens or more; raise "
                "draft.train.tokens_per_sequence, or give more text"
            )
        self._order: tuple[int, torch.Tensor] | None = None
        self._embedding = target.embedding.to(self.compute_dtype)
        # Half precision keeps logits of size 25 to 1/64, bfloat16 to 1/8: too coarse to say what the target prefers.
        self._logits_dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._target_rows = target.lm_head[self.vocab_ids].to(self._logits_dtype)

    def step(self) -> torch.Tensor:
        """One optimizer step; returns (1 + K,) on the device: mean loss, then the share of right first choices."""
        settings = self.settings
        lr = settings.learning_rate * schedule(self.step_index, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        metrics = torch.zeros(1 + settings.future_tokens, device=self.target.device)
        for part in range(settings.accumulation):
            loss, figures = self._losses(self._batch(self.step_index * settings.accumulation + part))
            (loss / settings.accumulation).backward()
            metrics += figures / settings.accumulation
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_index += 1
        with torch.no_grad():
            decay = min(settings.ema_decay, self.step_index / (self.step_index + 10))
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)
        return metrics

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The averaged head, as it is stored."""
        averaged = {name: x.to(dtype, copy=True) for name, x in self.ema.items()}
        return averaged | {VOCAB_IDS: self.vocab_ids.to(torch.int32)}

    def state_dict(self) -> dict[str, Any]:
        plain = {name: x.detach() for name, x in self.parameters.items()}
        return {"step": self.step_index, "parameters": plain, "ema": self.ema, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_index = state["step"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
                self.ema[name].copy_(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])

    def _batch(self, index: int) -> torch.Tensor:
        """(P,) root positions: a shuffled pass over all runs of them, then another; `index` alone decides which."""
        settings = self.settings
        size = min(settings.batch_positions, len(self._roots))
        run_len = min(settings.run_len, size)
        num_runs, taken = len(self._roots) // run_len, size // run_len
        epoch, part = divmod(index, num_runs // taken)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(num_runs, generator=generator))
        runs = self._order[1][part * taken : (part + 1) * taken]
        return self._roots[(runs.unsqueeze(1) * run_len + torch.arange(run_len)).flatten()]

    def _losses(self, roots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        settings, device = self.settings, self.target.device
        steps = settings.future_tokens
        labels = labels_of(roots, steps)
        roots, places, label_rows = (_on(device, x) for x in (roots, *labels))
        window = roots.unsqueeze(1) + torch.arange(steps + 2, device=device)
        at = window.to(self.corpus.token_ids.device)
        token_ids = self.corpus.token_ids.flatten()[at].to(device, torch.int64)
        positions = self.corpus.positions.flatten()[at].to(device, torch.int64)
        hidden = self._hidden(torch.cat([roots, places])).to(device)
        weights = {name: x.to(self.compute_dtype) for name, x in self.parameters.items()}
        context, predicting = hidden[: len(roots)].to(self.compute_dtype), hidden[len(roots) :].to(self._logits_dtype)
        read = self._read(weights, context, self._embedding[token_ids[:, 1 : steps + 1]])
        own_rows = self.parameters.get(PREFIX + "lm_head.weight")
        rows = self._target_rows if own_rows is None else own_rows[self.vocab_ids].to(self._logits_dtype)
        targets = targets_of(predicting @ self._target_rows.T, rows, settings.hard_share)
        # Text goes on where positions do; a text's last token predicts nothing.
        in_text = positions[:, 2:] - positions[:, :1] == torch.arange(2, steps + 2, device=device)
        share = in_text / in_text.sum(0).clamp(min=1)  # (P, K)
        decay = settings.depth_decay ** torch.arange(steps, device=device)
        weight = share * (decay / decay.sum())
        loss, hits = head_loss(read.flatten(0, 1), rows, targets, label_rows.T.flatten(), weight.T.flatten())
        top1 = (hits.view(steps, -1) * share.T).sum(1)
        return loss, torch.cat([loss.detach().unsqueeze(0), top1])

    def _read(self, weights: dict[str, torch.Tensor], context: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """What the LM head reads after each of K tokens: context (P, H), embedded (P, K, H) -> (K, P, E)."""
        head = DraftHead(self.config, weights, embedded, "torch")  # its LM head is not called
        states, state = [], None
        for step in range(embedded.shape[1]):
            state = head.advance(embedded[:, step], state)
            states.append(state)
        return head.exit(head.begin(context), torch.stack(states))

    def _hidden(self, places: torch.Tensor) -> torch.Tensor:
        """(n, H) hidden states at flat positions (n,); computed again where they are not kept."""
        corpus = self.corpus
        if corpus.hidden is not None:
            return corpus.hidden.flatten(0, 1)[places.to(corpus.hidden.device)]
        row_len = corpus.token_ids.shape[1]
        rows, place = torch.unique(places // row_len, return_inverse=True)
        hidden = hidden_of(corpus, self.target, rows.to(corpus.token_ids.device)).flatten(0, 1)
        return hidden[place * row_len + places % row_len]


def labels_of(roots: torch.Tensor, num_steps: int) -> Labels:
    """Lay out the labels of a batch: drafts from a root `r` are compared with the predictions at r + 1 .. r + K.

    Where a root follows closely on the one before, they share all but the last.

    Example: roots [4, 5, 9] with K = 2 look at places [5, 6, 7, 10, 11], as rows [[0, 1], [1, 2], [3, 4]].
    """
    new = torch.full_like(roots, num_steps)
    gap = roots.diff()
    new[1:] = torch.where((gap > 0) & (gap < num_steps), gap, num_steps)
    ahead = torch.arange(num_steps)
    rows = new.cumsum(0).unsqueeze(1) - num_steps + ahead
    places = torch.empty(int(rows[-1, -1]) + 1, dtype=torch.int64)
    places[rows] = roots.unsqueeze(1) + 1 + ahead
    return Labels(places, rows)


def _on(device: torch.device, indices: torch.Tensor) -> torch.Tensor:
    """Send to the device without waiting for what it is doing."""
    return indices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else indices


def schedule(step: int, settings: LoopSettings) -> float:
    """Share of the learning rate: linear warm-up, then a cosine down to 2 %."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(settings.num_steps - settings.warmup_steps, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def run_training(
    training: Training,
    state_file: Path,
    every: int,
    report: Callable[[int, StepMetrics], None],
    evaluate: Callable[[Training], float],
    keep: Callable[[dict[str, torch.Tensor]], object],
) -> dict[str, torch.Tensor]:
    """Train to the end, from `state_file` where an earlier try left one; returns the best head by `evaluate`.

    Every `every` steps, and at the end: evaluate, report with the mean metrics, `keep` the head where it is the best,
    and save the state.
    """
    best: dict[str, Any] = {"value": -1.0, "tensors": {}}
    before = 0.0
    if state_file.is_file():
        saved = torch.load(state_file, map_location=training.target.device, weights_only=True)
        training.load_state_dict(saved["training"])
        best, before = saved["best"], saved["seconds"]
    total = training.settings.num_steps
    gathered = []
    began = time.monotonic() - before
    while training.step_index < total:
        gathered.append(training.step())
        if training.step_index % every and training.step_index < total:
            continue
        loss, *top1 = torch.stack(gathered).mean(0).tolist()
        gathered = []
        value = evaluate(training)
        seconds = time.monotonic() - began
        report(training.step_index, StepMetrics(loss, tuple(top1), value, round(seconds, 2)))
        if value > best["value"]:
            best = {"value": value, "tensors": training.tensors(torch.float32)}
            keep(best["tensors"])
        partial = state_file.with_suffix(".partial")
        torch.save({"training": training.state_dict(), "best": best, "seconds": seconds}, partial)
        partial.replace(state_file)
    return dict(best["tensors"])


def draft_vocabulary(corpus: Corpus, vocab_size: int, size: int, always: frozenset[int]) -> torch.Tensor:
    """The `size` tokens that the target answers with most often, and `always`; ascending (size,) int64."""
    counts = torch.bincount(corpus.token_ids[corpus.learnt].long(), minlength=vocab_size).float().cpu()
    counts += torch.linspace(0.5, 0, vocab_size)  # unseen tokens: the lower id, which is the commoner merge
    counts[sorted(always)] = torch.inf
    return counts.topk(min(size, vocab_size)).indices.sort().values
