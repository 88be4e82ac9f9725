"""Prompt lookup: what followed the text's last few tokens the time before is proposed again. Needs no model.

Source: Saxena, "Prompt Lookup Decoding" (2023).
"""

import torch

from runtime.batch import Batch
from runtime.errors import EnginewrightError
from runtime.kv.cache import KVCache
from runtime.speculation.chain import chain_tree
from runtime.speculation.drafter import DraftContext
from runtime.speculation.tree import DraftTree, TreeShape

_LONGEST_N = 16
_LONGEST_HISTORY = 2**20  # with _LONGEST_N and 64 nodes, a match's rank fits into 31 bits


class NgramDrafter:
    """See `runtime.speculation.drafter.Drafter`. Looks for the last n tokens, n from `max_n` down to `min_n`.

    Raises:
        EnginewrightError: not 1 <= min_n <= max_n <= 16.
    """

    name = "ngram"
    caches: list[KVCache]

    def __init__(self, min_n: int = 2, max_n: int = 3) -> None:
        if not 1 <= min_n <= max_n <= _LONGEST_N:
            raise EnginewrightError(
                f"n-gram drafter: min_n {min_n} and max_n {max_n}; they must be 1 <= min_n <= max_n <= {_LONGEST_N}"
            )
        self.caches = []
        self._min_n = min_n
        self._max_n = max_n

    def propose(self, context: DraftContext, shape: TreeShape) -> DraftTree:
        """Propose a chain of up to `shape.depth` tokens, none where no n-gram recurs.

        Example: in "a b c d a b e a b" with K = 2, the last "a b" is found at "a b e", and "e a" is proposed.
        """
        assert context.history.shape[1] <= _LONGEST_HISTORY
        ranks = _ranks(context.history, context.positions, self._min_n, self._max_n, shape.depth)
        best = ranks.max(dim=1).values
        tokens = _continuation(context.history, context.positions, best, shape.depth)
        return chain_tree(context.root_ids, tokens, shape.num_nodes)

    def follow(self, batch: Batch) -> None:
        """Nothing to keep: the history is in the context."""


def _ranks(history: torch.Tensor, positions: torch.Tensor, min_n: int, max_n: int, depth: int) -> torch.Tensor:
    """Rank each place of the text as the end of an n-gram like the last one: (B, S) int32, -1 where there is none.

    The longest n-gram wins, then the one with the most known tokens after it up to `depth` (the end of a loop such as
    "a b a b a b" has few), then the latest. The place is the rank modulo S.
    """
    num_places = history.shape[1]
    places = torch.arange(num_places, dtype=torch.int32, device=history.device)
    matching = places < positions.unsqueeze(1)
    lengths = torch.zeros(history.shape, dtype=torch.int32, device=history.device)
    for back in range(min(max_n, num_places)):
        # A place before `positions` that reaches back this far leaves no doubt that the text does too.
        token = history.gather(1, (positions - back).clamp(min=0).unsqueeze(1))
        matching[:, back:] &= history[:, : num_places - back] == token
        matching[:, :back] = False
        lengths += matching
    following = (positions.to(torch.int32).unsqueeze(1) - places).clamp(max=depth)
    ranks = (lengths * (depth + 1) + following) * num_places + places
    return torch.where(lengths >= min_n, ranks, -1)


def _continuation(history: torch.Tensor, positions: torch.Tensor, ranks: torch.Tensor, depth: int) -> torch.Tensor:
    """The `depth` tokens after each ranked place, -1 beyond the known text: ranks (B,) -> (B, K) int64."""
    first = ranks.long() % history.shape[1] + 1
    places = first.unsqueeze(1) + torch.arange(depth, device=history.device)
    is_known = (ranks >= 0).unsqueeze(1) & (places <= positions.unsqueeze(1))
    return torch.where(is_known, history.gather(1, places.clamp(max=history.shape[1] - 1)), -1)
