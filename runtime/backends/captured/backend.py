"""The backend whose steps are captured graphs: one upload of what the host knows, replays, one download of tokens."""

from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch

from plugins.emit_tokens import Report
from runtime.backends.base import EngineLimits, StepResult, TokenHandle, TokenLogprobs
from runtime.backends.captured.buckets import Buckets
from runtime.backends.captured.recording import Recorder, Recording
from runtime.backends.captured.transfers import Download, Transfers
from runtime.backends.device_state import DeviceState, Drawing
from runtime.backends.packing import Layout, host_words, unpack
from runtime.backends.torch_backend import TorchBackend, checked, token_logprobs
from runtime.batch import StepPlan
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput
from runtime.speculation.acceptance import Accepted
from runtime.speculation.drafter import Drafter

_COUNT, _NUM_DRAFTED, _TOKENS = 0, 1, 2  # columns of a row's result, see plugins.emit_tokens.Report


class _Pass(NamedTuple):
    """Where a replay leaves what it computed."""

    drawing: Drawing
    output: DecoderOutput
    accepted: Accepted


class _Graph(NamedTuple):
    words: torch.Tensor  # (1 + n,) int64: which pass of the plan was the last, then the packed plan
    results: torch.Tensor  # (most_repeats, E, 2 + K + 1) int64: count, drafted nodes, tokens
    recording: Recording[_Pass]


class _Handle:
    """A plan whose tokens are on their way to the host."""

    def __init__(
        self, download: Download, emitting: list[int], logprobs: list[list[TokenLogprobs] | None], repeats: int
    ) -> None:
        self._download = download
        self._emitting = emitting
        self._logprobs = logprobs
        self._repeats = repeats

    def read(self) -> list[StepResult]:
        results = self._download.wait()[: self._repeats]
        return [self._one(rows[self._emitting].tolist()) for rows in results] if self._emitting else []

    def _one(self, rows: list[list[int]]) -> StepResult:
        tokens = [row[_TOKENS : _TOKENS + row[_COUNT]] for row in rows]
        return checked(StepResult(tokens, [row[_NUM_DRAFTED] for row in rows], self._logprobs))


class CapturedBackend(TorchBackend):
    """See `Backend`. Holds one state, so it serves one engine at a time; a new state forgets the one before.

    `cache` and a drafter's caches have one block more than the limits say: padding is written there.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        limits: EngineLimits,
        recorder: Recorder,
        drafter: Drafter | None = None,
        read_lag: int = 1,
        most_repeats: int = 8,
    ) -> None:
        assert cache.num_blocks == limits.num_blocks + 1, "padding needs a block of its own"
        super().__init__(decoder, cache, limits, drafter, read_lag, most_repeats)
        self.uniform_drafts = True
        self._buckets = Buckets(limits)
        self._recorder = recorder
        self._transfers = Transfers(self.device)
        self._graphs: dict[tuple[Layout, bool, Drafter | None], _Graph] = {}
        self._state = DeviceState(limits.max_batch_size + 1, limits.max_seq_len, decoder.empty_hidden())

    def new_state(self) -> DeviceState:
        self._state.reset()
        return self._state

    @torch.inference_mode()
    def prepared(self, run: Callable[[], object]) -> Callable[[], object]:
        return self._recorder.record(run).replay

    @torch.inference_mode()
    def step(self, plan: StepPlan, state: DeviceState) -> TokenHandle:
        assert state is self._state, "the state of an engine that another has replaced"
        if plan.rules:  # what they do depends on the text, so no recording knows it
            return super().step(plan, state)
        if plan.copies:
            self._copy(plan.copies)
        layout = self._buckets.layout(plan)
        graph = self._graph(layout, any(state.samples[row.slot] for row in plan.rows if row.drafts))
        padded = self._buckets.pad(plan, layout)
        self._transfers.upload(_words(padded, layout), graph.words)
        for _ in range(plan.repeats):
            graph.recording.replay()
        emitting = [index for index, row in enumerate(plan.rows) if row.emits]
        logprobs = [self._logprobs_of(graph.recording.result, index, plan) for index in emitting]
        return _Handle(self._transfers.download(graph.results), emitting, logprobs, plan.repeats)

    @torch.inference_mode()
    def try_largest_steps(self) -> None:
        """Record the steps that take the most memory: what does not fit fails now, not under somebody's request."""
        for layout in self._buckets.largest:
            self._graph(layout, samples=False)

    def _graph(self, layout: Layout, samples: bool) -> _Graph:
        drafter = self.drafter
        if drafter is not None and layout.shape is None and not drafter.caches:
            drafter = None  # it neither drafts in such a step nor follows it
        key = (layout, samples, drafter)
        if key not in self._graphs:
            self._graphs[key] = self._capture(layout, samples)
        return self._graphs[key]

    def _capture(self, layout: Layout, samples: bool) -> _Graph:
        depth = layout.shape.depth if layout.shape else 0
        words = torch.from_numpy(_words(self._buckets.nothing(layout), layout)).to(self.device)
        results = words.new_zeros(self.most_repeats, layout.num_draws, _TOKENS + depth + 1)

        report = Report(words[:1], results, self._buckets.dummy_slot)
        return _Graph(words, results, self._recorder.record(lambda: self._one_pass(words[1:], layout, samples, report)))

    def _one_pass(self, words: torch.Tensor, layout: Layout, samples: bool, report: Report) -> _Pass:
        propose = self.drafter.propose if self.drafter else None
        batch, drawing = unpack(words, layout, self._state, propose, samples, report.turn)
        output = self.forward(batch)
        if self.drafter is not None:
            self.drafter.follow(batch)
        depth = layout.shape.depth if layout.shape else 0
        accepted = self._state.draw(drawing, depth, output, report=report)
        if depth:
            self._compact(drawing, accepted)
        return _Pass(drawing, output, accepted)

    def _logprobs_of(self, done: _Pass, index: int, plan: StepPlan) -> list[TokenLogprobs] | None:
        """Of the pass that was launched last, before another overwrites its logits; waits for it."""
        count = plan.rows[index].logprobs
        return None if count is None else token_logprobs(done.output.logits, done.drawing, done.accepted, index, count)


def _words(padded: StepPlan, layout: Layout) -> numpy.ndarray:
    return numpy.concatenate([numpy.full(1, -1, dtype=numpy.int64), host_words(padded, layout)])
