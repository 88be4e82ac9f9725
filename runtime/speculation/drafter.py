"""The protocol that every drafter implements: ReDrafter, a smaller model, n-gram lookup."""

from typing import NamedTuple, Protocol

import torch

from plugins.draft_pass import DraftTexts, DrawNoise
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.speculation.tree import DraftTree, TreeShape


class DraftContext(Protocol):
    """What B speculating requests have on the device. A drafter reads it and changes nothing but its own caches.

    A request with n known tokens has its last one, the root of the tree, at position n - 1 = `positions`; keys and
    values of the tokens before it are in the cache. A part may be gathered only when it is asked for.
    """

    @property
    def root_ids(self) -> torch.Tensor:
        """(B,) int64, the last emitted token."""
        ...

    @property
    def positions(self) -> torch.Tensor:
        """(B,) int64, of the root."""
        ...

    @property
    def hidden(self) -> torch.Tensor:
        """(B, H), the target's final hidden state (after the final norm) at position `positions` - 1."""
        ...

    @property
    def history(self) -> torch.Tensor:
        """(B, S) int64, the request's tokens; entries past `positions` are meaningless."""
        ...

    @property
    def block_tables(self) -> torch.Tensor:
        """(B, max_blocks) int64, blocks that reach at least to `positions` + N."""
        ...

    @property
    def temperature(self) -> torch.Tensor:
        """(B,) float32, 0 is greedy."""
        ...

    @property
    def top_k(self) -> torch.Tensor:
        """(B,) int64."""
        ...

    @property
    def top_p(self) -> torch.Tensor:
        """(B,) float32."""
        ...

    @property
    def min_p(self) -> torch.Tensor:
        """(B,) float32."""
        ...

    @property
    def seed(self) -> torch.Tensor:
        """(B,) int64."""
        ...

    @property
    def sample_index(self) -> torch.Tensor:
        """(B,) int64."""
        ...

    @property
    def samples(self) -> bool:
        """Known on the host: False where no temperature is above 0."""
        ...

    @property
    def texts(self) -> tuple[DraftTexts, DrawNoise] | None:
        """Where the parts stand, for a drafter that gathers them itself; None where they stand nowhere together."""
        ...


class GivenContext(NamedTuple):
    """A `DraftContext` whose parts are all there."""

    root_ids: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    history: torch.Tensor
    block_tables: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    sample_index: torch.Tensor
    samples: bool = True
    texts: tuple[DraftTexts, DrawNoise] | None = None


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
