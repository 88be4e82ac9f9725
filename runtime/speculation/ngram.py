"""Prompt lookup: what followed the text's last few tokens before is proposed again. Needs no model.

Source: Saxena, "Prompt Lookup Decoding" (2023).
"""

import torch

from runtime.batch import Batch
from runtime.errors import EnginewrightError
from runtime.kv.cache import KVCache
from runtime.speculation.candidates import Candidates, merge_equal, pack
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
        """Propose up to `shape.depth` tokens after each of the `shape.num_beams` best places; nothing where none is.

        Example: in "a b c d a b e a b" with K = 2, the last "a b" is found at "a b e", and "e a" is proposed; with
        W = 2 "c d" as well.
        """
        return pack(self.candidates(context, shape), context.root_ids, shape.num_nodes)

    def candidates(self, context: DraftContext, shape: TreeShape) -> Candidates:
        """List what `propose` packs."""
        num_places, depth = context.history.shape[1], shape.depth
        assert num_places <= _LONGEST_HISTORY
        ranks = _ranks(context.history, context.positions, self._min_n, self._max_n, depth)
        best = ranks.topk(min(shape.num_beams, num_places), dim=1).values.long()  # (B, W)
        token_ids = _continuations(context.history, context.positions, best, depth)  # (B, W, K)
        matched_len = best.unsqueeze(2) // ((depth + 1) * num_places)
        is_known = token_ids >= 0
        scores = torch.where(is_known, _log_chance(matched_len, depth), -torch.inf)
        nodes = torch.arange(token_ids[0].numel(), device=best.device).view(token_ids.shape[1:])
        parents = torch.where(nodes % depth == 0, -1, nodes - 1).expand_as(token_ids)
        flat = Candidates(token_ids.flatten(1), parents.flatten(1), scores.flatten(1))
        return merge_equal(flat, depth) if best.shape[1] > 1 else flat

    def follow(self, batch: Batch) -> None:
        """Nothing to keep: the history is in the context."""


def _log_chance(matched_len: torch.Tensor, depth: int) -> torch.Tensor:
    """Guess how likely continuations are after n equal tokens: (B, W, 1) int64 -> (B, W, K) float, nats.

    n / (n + 1) for the next token, and so n / (n + k) for k of them, as each one makes the match longer; a place
    counts only where those ranked above it failed, which has the chance 1 / (n + 1) each.
    """
    _, num_beams, _ = matched_len.shape
    steps = torch.arange(1, depth + 1, device=matched_len.device)
    better = torch.arange(num_beams, device=matched_len.device).unsqueeze(1)
    return torch.log(matched_len / (matched_len + steps)) - better * torch.log(matched_len + 1)


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


def _continuations(history: torch.Tensor, positions: torch.Tensor, ranks: torch.Tensor, depth: int) -> torch.Tensor:
    """The `depth` tokens after each ranked place, -1 beyond the known text: ranks (B, W) -> (B, W, K) int64."""
    num_places = history.shape[1]
    first = (ranks % num_places + 1).unsqueeze(2)
    places = first + torch.arange(depth, device=history.device)
    is_known = (ranks >= 0).unsqueeze(2) & (places <= positions.view(-1, 1, 1))
    tokens = history.gather(1, places.clamp(max=num_places - 1).flatten(1)).view(places.shape)
    return torch.where(is_known, tokens, -1)
