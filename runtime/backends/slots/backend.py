"""The backend over a session: steps on ONNX Runtime, or on a plan of the same graph."""

from collections.abc import Sequence

from plugins.kv_compact import kv_compact
from runtime.backends.base import BatchLayout, EngineLimits, KvLayout
from runtime.backends.device_state import Drawing
from runtime.backends.slots.cache import SlotCache
from runtime.backends.slots.decoder import SlotDecoder
from runtime.backends.slots.session import StepSession
from runtime.backends.torch_backend import TorchBackend
from runtime.errors import EnginewrightError
from runtime.speculation.acceptance import Accepted
from runtime.speculation.drafter import Drafter
from runtime.speculation.tree import MAX_NODES


class OnnxBackend(TorchBackend):
    """See `Backend`. One block holds a whole request, and the draft tree at its end.

    Raises:
        EnginewrightError: limits that the session's graph was not made for.
    """

    kv: KvLayout = "slots"
    batch: BatchLayout = "dense"

    def __init__(self, session: StepSession, limits: EngineLimits, drafter: Drafter | None = None) -> None:
        _check(session, limits)
        cache = SlotCache(session.spec, limits.num_blocks, session.cache_len, session.dtype, session.device)
        super().__init__(SlotDecoder(session), cache, limits, drafter)
        self._slots = cache
        self.uniform_drafts = True  # a pass has as many rows for each request
        self.variant = ""

    def _compact(self, drawing: Drawing, accepted: Accepted) -> None:
        """As the base does; the target's blocks lie elsewhere than the drafters'."""
        for cache in self._caches():
            tables = self._slots.slots(drawing.block_tables) if cache is self._slots else drawing.block_tables
            kv_compact(cache.storage, tables, drawing.roots, accepted.nodes, accepted.counts)

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the rows that are used alone: a block is as long as the longest request."""
        for source, target in copies:
            num_rows = self._slots.copy_block(source, target)
            for cache in self._caches()[1:]:
                cache.storage[:, target, :, :num_rows] = cache.storage[:, source, :, :num_rows]


def cache_len_for(max_seq_len: int) -> int:
    """Rows of a slot, Smax: the longest request, and the largest draft tree that starts at its last token."""
    return -(-(max_seq_len + MAX_NODES) // MAX_NODES) * MAX_NODES


def _check(session: StepSession, limits: EngineLimits) -> None:
    if limits.block_size != session.cache_len:
        raise EnginewrightError(
            f"the engine's block_size is {limits.block_size}, its graph has caches of {session.cache_len} rows; build "
            "the bundle again"
        )
    if limits.max_seq_len + MAX_NODES > session.cache_len:
        raise EnginewrightError(
            f"the engine's max_seq_len is {limits.max_seq_len}; its graph has caches of {session.cache_len} rows, "
            f"which hold {session.cache_len - MAX_NODES} tokens and a draft tree; build the bundle again"
        )
    if not session.takes(limits.max_batch_size, MAX_NODES) or not session.takes(1, limits.max_num_tokens):
        raise EnginewrightError(
            f"the engine's limits are max_batch_size {limits.max_batch_size} and max_num_tokens "
            f"{limits.max_num_tokens}; its graph was not built for so many; build the bundle again"
        )
