"""The backend over torch ops: the decoder over a paged cache, on the CPU or any device that the ops run on."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from plugins.kv_compact import kv_compact
from plugins.kv_copy_blocks import kv_copy_blocks
from plugins.sample import NO_TOKEN
from runtime.backends.base import BatchLayout, EngineLimits, KvLayout, StepResult, TokenHandle, TokenLogprobs
from runtime.backends.device_state import DeviceState, Drawing
from runtime.backends.packing import pack
from runtime.batch import Batch, PlanRow, StepPlan
from runtime.kv.cache import KVCache
from runtime.model.decoder import DecoderOutput
from runtime.spec import ModelSpec
from runtime.speculation.acceptance import Accepted
from runtime.speculation.drafter import Drafter


class _Handle:
    """A plan whose tokens may still be on the device."""

    def __init__(self, passes: list["_Pass"]) -> None:
        self._passes = passes

    def read(self) -> list[StepResult]:
        return [one.read() for one in self._passes]


class _Pass:
    """One pass of a plan that draws tokens."""

    def __init__(self, drawing: Drawing, accepted: Accepted, logprobs: list[list[TokenLogprobs] | None]) -> None:
        self._drawing = drawing
        self._accepted = accepted
        self._logprobs = logprobs

    def read(self) -> StepResult:
        counts = self._accepted.counts.tolist()
        tokens = [row[:count] for row, count in zip(self._accepted.token_ids.tolist(), counts, strict=True)]
        tree = self._drawing.tree
        num_drafted = (tree.token_ids[:, 1:] >= 0).sum(dim=1).tolist() if tree else [0] * len(counts)
        return checked(StepResult(tokens, num_drafted, self._logprobs))


class RunsBatches(Protocol):
    """What runs the target's layers over a packed batch: `Decoder`, or a session over a graph."""

    spec: ModelSpec
    device: torch.device

    def forward(self, batch: Batch, cache: KVCache) -> DecoderOutput: ...

    def empty_hidden(self) -> torch.Tensor: ...


class TorchBackend:
    """See `runtime.backends.base.Backend`. On the CPU `read_lag` is 0, because a step has ended when it returns."""

    kv: KvLayout = "paged"
    batch: BatchLayout = "packed"

    def __init__(
        self,
        decoder: RunsBatches,
        cache: KVCache,
        limits: EngineLimits,
        drafter: Drafter | None = None,
        read_lag: int = 0,
        most_repeats: int = 1,
    ) -> None:
        self.limits = limits
        self.vocab_size = decoder.spec.vocab_size
        self.drafter = drafter
        self.device = decoder.device
        self.read_lag = read_lag
        self.most_repeats = most_repeats
        self.uniform_drafts = False
        self.variant = ""
        self.decoder = decoder
        self.cache = cache

    def forward(self, batch: Batch) -> DecoderOutput:
        return self.decoder.forward(batch, self.cache)

    def prepared(self, run: Callable[[], object]) -> Callable[[], object]:
        return run

    def new_state(self) -> DeviceState:
        return DeviceState(self.limits.max_batch_size, self.limits.max_seq_len, self.decoder.empty_hidden())

    @torch.inference_mode()
    def step(self, plan: StepPlan, state: DeviceState) -> TokenHandle:
        if plan.copies:
            self._copy(plan.copies)
        passes = [self._pass(plan, state) for _ in range(plan.repeats)]
        return _Handle([one for one in passes if one is not None])

    def _pass(self, plan: StepPlan, state: DeviceState) -> _Pass | None:
        """None where the pass only computes keys and values."""
        batch, drawing = pack(plan, state, self.drafter.propose if self.drafter else None)
        output = self.forward(batch)
        if self.drafter is not None:
            self.drafter.follow(batch)
        if not len(drawing.slots):
            return None
        depth = plan.shape.depth if plan.shape else 0
        accepted = state.draw(drawing, depth, output, plan.rules)
        if depth:
            self._compact(drawing, accepted)
        emitting = [row for row in plan.rows if row.emits]
        return _Pass(drawing, accepted, _logprobs(output.logits, drawing, accepted, emitting))

    def _caches(self) -> list[KVCache]:
        return [self.cache, *(self.drafter.caches if self.drafter else [])]

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        for cache in self._caches():
            src, dst = torch.tensor(copies, device=cache.storage.device).unbind(1)
            kv_copy_blocks(cache.storage, src, dst)

    def _compact(self, drawing: Drawing, accepted: Accepted) -> None:
        """Move the accepted path's keys and values from where the tree's nodes lie to where a chain's would."""
        for cache in self._caches():
            kv_compact(cache.storage, drawing.block_tables, drawing.roots, accepted.nodes, accepted.counts)


def checked(result: StepResult) -> StepResult:
    """Return it as it is.

    Raises:
        ValueError: a row had no token to draw.
    """
    if any(NO_TOKEN in tokens for tokens in result.token_ids):
        raise ValueError("logits hold NaN; the engine's weights or kernels are broken: verify the bundle")
    return result


def _logprobs(
    logits: torch.Tensor, drawing: Drawing, accepted: Accepted, emitting: list[PlanRow]
) -> list[list[TokenLogprobs] | None]:
    return [
        None if row.logprobs is None else token_logprobs(logits, drawing, accepted, index, row.logprobs)
        for index, row in enumerate(emitting)
    ]


def token_logprobs(
    logits: torch.Tensor, drawing: Drawing, accepted: Accepted, index: int, count: int
) -> list[TokenLogprobs]:
    """Log-probabilities of what the `index`-th drawing row emits, with the `count` likeliest tokens of each."""
    rows = drawing.first_rows[index] + accepted.nodes[index, : int(accepted.counts[index])]
    return [
        _token_logprobs(logits[at], int(token), count)
        for at, token in zip(rows, accepted.token_ids[index], strict=False)
    ]


def _token_logprobs(logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(logits.double(), dim=0)
    values, token_ids = logprobs.topk(count)
    return TokenLogprobs(float(logprobs[token]), list(zip(token_ids.tolist(), values.tolist(), strict=True)))
