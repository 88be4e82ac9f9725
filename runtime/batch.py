"""What one pass of the target takes: the host's plan, and the packed tokens with where their keys lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from runtime.sampling_rules.rules import TextRules
from runtime.speculation.tree import TreeShape


class PlanRow(NamedTuple):
    """One request's share of a step."""

    slot: int  # its row of the device state
    token_ids: list[int] | None  # new tokens that the host knows; None goes on from the token that the state drew last
    start: int  # position of the first new token; where the state knows better, the largest that it can be
    num_tokens: int
    blocks: list[int]
    emits: bool  # whether the last new token's logits choose a token
    logprobs: int | None
    drafts: bool = False  # the new tokens are a draft tree of `num_tokens` nodes over the state's last token
    rules: TextRules | None = None  # what changes the logits before a draw


class StepPlan(NamedTuple):
    """What one step computes, or several steps that are launched together: then every row decodes."""

    rows: list[PlanRow]
    shape: TreeShape | None = None  # of the rows that draft; None where none does
    copies: Sequence[tuple[int, int]] = ()  # blocks to be copied over others before the pass, in every cache
    repeats: int = 1  # passes, each going on from what the one before drew

    @property
    def rules(self) -> dict[int, TextRules]:
        """Of those of the rows that emit, counted without the others, that have some.

        They need the text on the host, so a step with rules is one pass, and is read before the next is planned.
        """
        emitting = (row for row in self.rows if row.emits)
        return {index: row.rules for index, row in enumerate(emitting) if row.rules is not None}

    def most_tokens(self, row: PlanRow) -> int:
        """How many tokens a row may emit."""
        return self.repeats * (self.shape.depth + 1 if row.drafts and self.shape else int(row.emits))


@dataclass(frozen=True)
class Batch:
    """B requests with T new tokens between them, packed without padding. All tensors are int64 on one device.

    Request b owns tokens query_starts[b] : query_starts[b + 1]; they are the last of its context_lens[b] tokens.
    Keys and values of the new tokens are written to the request's blocks by the pass itself.

    The new tokens of a request are a chain, each seeing all before it, or the nodes of a draft tree. Nodes lie in the
    cache in their own order, but their positions in the text are the root's plus their depths.
    """

    token_ids: torch.Tensor  # (T,)
    positions: torch.Tensor  # (T,), index of each token in its request's text
    cache_positions: torch.Tensor  # (T,), where in its request's blocks it lies; `positions` where there is no tree
    query_starts: torch.Tensor  # (B + 1,), from 0
    context_lens: torch.Tensor  # (B,), tokens in the cache once this pass has run
    block_tables: torch.Tensor  # (B, max_blocks), padded with any value
    logit_rows: torch.Tensor  # (R,), which of the T tokens get logits, in this order
    ancestors: torch.Tensor | None = None  # (B, N), bits as in DraftTree, 0 for requests without a tree
    max_query_len: int | None = None  # no request has more new tokens; T where it is not given

    def token_blocks(self, block_size: int) -> torch.Tensor:
        """(T,) the cache block that each new token's keys go to."""
        requests = torch.arange(len(self.context_lens), device=self.positions.device)
        owners = torch.repeat_interleave(requests, self.query_starts.diff(), output_size=len(self.positions))
        return self.block_tables[owners, self.cache_positions // block_size]
