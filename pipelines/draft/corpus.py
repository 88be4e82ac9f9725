"""What a head is trained on: rows of packed texts, and the target's hidden states over them where they are kept."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipelines.draft.target import TargetModel
from runtime.errors import EnginewrightError


@dataclass(frozen=True)
class Corpus:
    """R rows of T tokens; texts follow each other in a row, the last one may be cut off."""

    token_ids: torch.Tensor  # (R, T) int32
    positions: torch.Tensor  # (R, T) int16, of each token in its own text: 0 starts one
    learnt: torch.Tensor  # (R, T) bool, tokens that the target answered: what a head is to draft
    hidden: torch.Tensor | None = None  # (R, T, H), the target's final hidden states

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()

    def digest(self) -> str:
        """SHA-256 of the texts and their bounds."""
        hasher = hashlib.sha256()
        for tensor in (self.token_ids, self.positions, self.learnt):
            hasher.update(tensor.cpu().contiguous().numpy().tobytes())
        return hasher.hexdigest()

    def roots(self, num_steps: int) -> torch.Tensor:
        """Flat indices of the positions to draft from: the next token is learnt, and so is the one after it.

        The last `num_steps` positions are left out, so that windows of them and what follows stay inside.
        """
        position, learnt = self.positions.flatten(), self.learnt.flatten()
        usable = learnt[1:-1] & learnt[2:] & (position[2:] == position[:-2] + 2)
        return torch.nonzero(usable[: len(position) - num_steps - 1]).flatten()


def pack_texts(texts: list[list[int]], row_len: int) -> Corpus:
    """Lay texts end to end into rows, cutting where a row ends; a last row that is not full is dropped.

    Raises:
        EnginewrightError: too little text for one row.
    """
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
    starts = torch.tensor([position for text in texts for position in range(len(text))], dtype=torch.int32)
    num_rows = len(ids) // row_len
    if num_rows == 0:
        raise EnginewrightError(f"draft data: {len(ids)} tokens do not fill one row of {row_len}; give more text")
    ids, starts = (x[: num_rows * row_len].view(num_rows, row_len) for x in (ids, starts))
    columns = torch.arange(row_len, dtype=torch.int32)
    positions = torch.minimum(starts, columns.expand_as(starts))  # a text cut in two starts anew
    return Corpus(ids, positions.to(torch.int16), positions > 0)


def with_hidden(corpus: Corpus, target: TargetModel, byte_limit: int, cache_file: Path, batch_rows: int = 8) -> Corpus:
    """Compute the hidden states once and keep them in a mapped file, unless that would be more than `byte_limit`."""
    shape = (*corpus.token_ids.shape, target.spec.hidden_size)
    if corpus.hidden is not None or torch.Size(shape).numel() * target.dtype.itemsize > byte_limit:
        return corpus
    done = cache_file.with_suffix(".done")
    name = corpus.digest()
    hidden = torch.from_file(
        str(cache_file), shared=True, size=torch.Size(shape).numel(), dtype=target.dtype
    ).view(shape)  # fmt: skip
    if not done.is_file() or done.read_text() != name:
        for first in range(0, shape[0], batch_rows):
            rows = slice(first, first + batch_rows)
            hidden[rows] = hidden_of(corpus, target, torch.arange(shape[0])[rows]).to(hidden)
        done.write_text(name)
    return replace(corpus, hidden=hidden)


def hidden_of(corpus: Corpus, target: TargetModel, rows: torch.Tensor) -> torch.Tensor:
    """The target's hidden states (R', T, H) over some rows, computed now."""
    ids, positions = (x[rows].to(target.device, torch.int64) for x in (corpus.token_ids, corpus.positions))
    return target.encode(ids, positions).to(target.dtype)
