"""Two drafters in one tree: the best nodes of both, equal paths merged."""

from typing import Protocol

import torch

from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.speculation.candidates import Candidates, concatenate, merge_equal, pack
from runtime.speculation.drafter import DraftContext, Drafter
from runtime.speculation.tree import DraftTree, TreeShape


class CandidateDrafter(Drafter, Protocol):
    """A drafter that can say what it chooses its tree from."""

    def candidates(self, context: DraftContext, shape: TreeShape) -> Candidates:
        """List scored tokens up to `shape.depth` deep, without a wait for the host."""
        ...


class CombinedDrafter:
    """See `runtime.speculation.drafter.Drafter`. Where both propose a path, it has the better of its two scores."""

    def __init__(self, first: CandidateDrafter, second: CandidateDrafter) -> None:
        self.name = f"{first.name}+{second.name}"
        self.caches: list[KVCache] = [*first.caches, *second.caches]
        self._first = first
        self._second = second

    @torch.inference_mode()
    def propose(self, context: DraftContext, shape: TreeShape) -> DraftTree:
        """Let both draft `shape` and pack the best of their candidates."""
        return pack(self.candidates(context, shape), context.root_ids, shape.num_nodes)

    @torch.inference_mode()
    def candidates(self, context: DraftContext, shape: TreeShape) -> Candidates:
        """List what `propose` packs."""
        drafted = concatenate(self._first.candidates(context, shape), self._second.candidates(context, shape))
        return merge_equal(drafted, shape.depth)

    def follow(self, batch: Batch) -> None:
        self._first.follow(batch)
        self._second.follow(batch)
