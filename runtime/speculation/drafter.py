"""The protocol that every drafter implements: ReDrafter, a smaller model, n-gram lookup."""

from typing import NamedTuple, Protocol

import torch

from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.speculation.tree import DraftTree, TreeShape


class DraftContext(NamedTuple):
    """What B speculating requests have on the device. A drafter reads it and changes nothing but its own caches.

    A request with n known tokens has its last one, the root of the tree, at position n - 1 = `positions`; keys and
    values of the tokens before it are in the cache.
    """

    root_ids: torch.Tensor  # (B,) int64, the last emitted token
    positions: torch.Tensor  # (B,) int64, of the root
    hidden: torch.Tensor  # (B, H), the target's final hidden state (after the final norm) at position `positions` - 1
    history: torch.Tensor  # (B, S) int64, the request's tokens; entries past `positions` are meaningless
    block_tables: torch.Tensor  # (B, max_blocks) int64, blocks that reach at least to `positions` + N
    temperature: torch.Tensor  # (B,) float32, 0 is greedy
    top_k: torch.Tensor  # (B,) int64
    top_p: torch.Tensor  # (B,) float32
    min_p: torch.Tensor  # (B,) float32
    seed: torch.Tensor  # (B,) int64
    sample_index: torch.Tensor  # (B,) int64
    samples: bool = True  # known on the host: False where no temperature is above 0


class Drafter(Protocol):
    """Proposes trees. Stateless but for caches of its own that follow the target's block for block."""

    name: str
    caches: list[KVCache]  # moved and copied together with the target's: same blocks, same rows; [] for none

    def propose(self, context: DraftContext, shape: TreeShape) -> DraftTree:
        """Draft B trees of `shape`, without a wait for the host: no `.item()`, no boolean indexing, no loop over B."""
        ...

    def follow(self, batch: Batch) -> None:
        """See what the target has just computed: prefill chunks, decode rows and trees, before acceptance."""
        ...
