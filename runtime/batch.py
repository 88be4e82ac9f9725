"""What one pass of the target takes: the host's plan, and the packed tokens with where their keys lie."""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class PlanRow(NamedTuple):
    """One request's share of a step."""

    slot: int  # its row of the device state
    token_ids: list[int] | None  # the new tokens; None is the one token that the state drew last
    start: int  # position of the first new token
    num_tokens: int
    blocks: list[int]
    emits: bool  # whether the last new token's logits choose a token
    logprobs: int | None


@dataclass(frozen=True)
class Batch:
    """B requests with T new tokens between them, packed without padding. All tensors are int64 on one device.

    Request b owns tokens query_starts[b] : query_starts[b + 1]; they are the last of its context_lens[b] tokens.
    Keys and values of the new tokens are written to the request's blocks by the pass itself.
    """

    token_ids: torch.Tensor  # (T,)
    positions: torch.Tensor  # (T,), index of each token in its request
    query_starts: torch.Tensor  # (B + 1,), from 0
    context_lens: torch.Tensor  # (B,), tokens in the cache once this pass has run
    block_tables: torch.Tensor  # (B, max_blocks), padded with any value
    logit_rows: torch.Tensor  # (R,), which of the T tokens get logits, in this order

    def kv_rows(self, num_kv_heads: int, block_size: int) -> torch.Tensor:
        """(T, N_kv) where each new token's keys go: rows of a cache seen as (num_blocks * N_kv * block_size, D)."""
        owners = torch.repeat_interleave(torch.arange(len(self.context_lens)), self.query_starts.diff())
        blocks = self.block_tables[owners, self.positions // block_size]
        first = blocks * (num_kv_heads * block_size) + self.positions % block_size
        return first.unsqueeze(1) + torch.arange(num_kv_heads) * block_size
