"""Which tree the next step drafts, if any: the one with the most tokens per second by costs and acceptance.

Knows time only through the cost table, so equal inputs give equal choices. See docs/speculation-policy.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from runtime.errors import EnginewrightError
from runtime.speculation.cost_table import CostTable
from runtime.speculation.tree import TreeShape

CHAINS = (TreeShape(4, 1, 3), TreeShape(6, 1, 5), TreeShape(8, 1, 7), TreeShape(12, 1, 11))
# A GPU has kernels for up to four rows that cost little more than those for one.
TINY_TREES = (TreeShape(2, 1, 1), TreeShape(3, 1, 2), TreeShape(4, 1, 3))
SMALL_TREES = (TreeShape(4, 2, 3), TreeShape(6, 3, 3), TreeShape(8, 4, 4))
TREES = (
    *(TreeShape(12, num_beams, depth) for num_beams, depth in ((4, 4), (8, 5))),
    *(TreeShape(32, num_beams, depth) for num_beams, depth in ((8, 5), (16, 5))),
    *(TreeShape(64, num_beams, depth) for num_beams, depth in ((16, 5), (32, 5))),
)

_GUESSED_ACCEPTANCE = 0.5  # per depth, of a drafter that nothing is known about
_PRIOR_TOKENS = 4.0  # the prior counts like this many predicted tokens; a shape's own record against all shapes' too
_PROBE_TOKENS = 1.0  # what the record still counts for when a probe begins
_DECAY = 0.95  # of the record, at each observation
_LARGEST_CORRECTION = 4.0  # of the prior's accepted draft tokens


class TreePolicy(Protocol):
    """Chooses the tree of each step."""

    def choose(self, num_decoding: int) -> TreeShape | None:
        """The tree for a step in which so many requests may speculate; None is plain decode. Once per step."""
        ...

    def observe(self, shape: TreeShape, num_requests: int, emitted_tokens: int) -> None:
        """Learn what a step with trees of `shape` gave: tokens of all its requests together, at least one each."""
        ...


@dataclass(frozen=True)
class FixedPolicy:
    """Always the same tree, or none."""

    shape: TreeShape | None

    def choose(self, num_decoding: int) -> TreeShape | None:
        return self.shape if num_decoding else None

    def observe(self, shape: TreeShape, num_requests: int, emitted_tokens: int) -> None:
        """Nothing to learn."""


@dataclass(frozen=True)
class AcceptancePrior:
    """What is known of a drafter before it runs here; all of it may be absent.

    accepted_lengths: tokens emitted per target step, by tree.
    acceptance: at each depth, how likely one of the tree's tokens is accepted where its parent was; the last goes on.
    """

    accepted_lengths: Mapping[TreeShape, float] = field(default_factory=dict)
    acceptance: Sequence[float] = ()

    def accepted_length(self, shape: TreeShape) -> float:
        """Expected tokens per target step, 1 to K + 1."""
        measured = self._measured(shape)
        if measured is not None:
            return min(max(measured, 1.0), shape.depth + 1.0)
        rates = list(self.acceptance) or [_GUESSED_ACCEPTANCE]
        length, reached = 1.0, 1.0
        for depth in range(shape.depth):
            reached *= rates[min(depth, len(rates) - 1)]
            length += reached
        return length

    def _measured(self, shape: TreeShape) -> float | None:
        """As measured, or between the next smaller and larger trees that were measured with these beams and depth: what
        a tree gives grows with the logarithm of its size."""
        sizes = {known.num_nodes: length for known, length in self.accepted_lengths.items()
                 if (known.num_beams, known.depth) == (shape.num_beams, shape.depth)}  # fmt: skip
        low = max((size for size in sizes if size <= shape.num_nodes), default=None)
        high = min((size for size in sizes if size >= shape.num_nodes), default=None)
        if low is None or high is None:
            return None
        if low == high:
            return sizes[low]
        share = math.log(shape.num_nodes / low) / math.log(high / low)
        return sizes[low] + share * (sizes[high] - sizes[low])


@dataclass
class _Record:
    """Draft tokens accepted and predicted, older ones counting less."""

    accepted: float = 0.0
    predicted: float = 0.0

    def scale(self, factor: float) -> None:
        self.accepted *= factor
        self.predicted *= factor

    def ratio(self, otherwise: float) -> float:
        """Accepted per predicted, `otherwise` where the record is short."""
        ratio = (self.accepted + _PRIOR_TOKENS * otherwise) / (self.predicted + _PRIOR_TOKENS)
        return min(ratio, _LARGEST_CORRECTION)


class SpeculationPolicy:
    """Weighs what is drafted against what it costs, and learns.

    Args:
        costs: has every candidate's W and K.
        candidates: the trees to choose from, all within the drafter's depth.
        prior: what to expect of the drafter.
        max_num_tokens: of a step, all requests together.
        probe_interval: steps without speculation after which a drafter that did not pay is tried again; doubles with
            each try in vain, up to `max_probe_interval`.
        probe_steps: steps of a try.
    """

    def __init__(
        self,
        costs: CostTable,
        candidates: Sequence[TreeShape],
        prior: AcceptancePrior,
        max_num_tokens: int,
        probe_interval: int = 64,
        max_probe_interval: int = 2048,
        probe_steps: int = 4,
    ) -> None:
        self.costs = costs
        self._candidates = tuple(candidates)
        self._max_num_tokens = max_num_tokens
        self._first_interval = self._interval = probe_interval
        self._max_interval = max_probe_interval
        self._probe_steps = probe_steps
        self._steps_off = 0
        self._speeds: dict[tuple[TreeShape, int], float] = {}  # a step asks for the same ones again and again
        self._prior_lengths = {shape: prior.accepted_length(shape) for shape in self._candidates}
        self._overall = _Record(_PRIOR_TOKENS, _PRIOR_TOKENS)
        self._by_shape = {shape: _Record() for shape in self._candidates}

    def choose(self, num_decoding: int) -> TreeShape | None:
        shapes = [shape for shape in self._candidates if num_decoding * shape.num_nodes <= self._max_num_tokens]
        if not shapes or num_decoding == 0:
            return None
        best = max(shapes, key=lambda shape: self.gain(shape, num_decoding))
        if self.gain(best, num_decoding) > 1.0:
            self._steps_off, self._interval = 0, self._first_interval
            return best
        if max(self._gain(shape, num_decoding, self._hoped_length) for shape in shapes) <= 1.0:
            return None  # not even the best drafter would pay for a step of this size
        likely = max(shapes, key=lambda shape: self._gain(shape, num_decoding, self._prior_lengths.__getitem__))
        return likely if self._is_probing() else None

    def observe(self, shape: TreeShape, num_requests: int, emitted_tokens: int) -> None:
        for record in (self._overall, *self._by_shape.values()):
            record.scale(_DECAY)
        predicted = num_requests * (self._prior_lengths[shape] - 1.0)
        for record in (self._overall, self._by_shape[shape]):
            record.accepted += emitted_tokens - num_requests
            record.predicted += predicted

    def expected_length(self, shape: TreeShape) -> float:
        """Tokens per target step that the prior, corrected by what was observed, expects of a tree."""
        overall = min(self._overall.accepted / max(self._overall.predicted, 1e-9), _LARGEST_CORRECTION)
        return self._corrected(shape, self._by_shape[shape].ratio(otherwise=overall))

    def gain(self, shape: TreeShape, num_decoding: int) -> float:
        """Tokens per second that are expected with trees of `shape`, over those of plain decode."""
        return self._gain(shape, num_decoding, self.expected_length)

    def _hoped_length(self, shape: TreeShape) -> float:
        return self._corrected(shape, _LARGEST_CORRECTION)

    def _corrected(self, shape: TreeShape, ratio: float) -> float:
        return min(1.0 + (self._prior_lengths[shape] - 1.0) * ratio, shape.depth + 1.0)

    def _gain(self, shape: TreeShape, num_decoding: int, length: Callable[[TreeShape], float]) -> float:
        return length(shape) * self._speed(shape, num_decoding)

    def _speed(self, shape: TreeShape, num_decoding: int) -> float:
        """Steps with trees of `shape` in the time of one of plain decode."""
        speed = self._speeds.get((shape, num_decoding))
        if speed is None:
            seconds = self.costs.target_step(num_decoding, shape.num_nodes) + self.costs.draft(num_decoding, shape)
            speed = self.costs.target_step(num_decoding, 1) / seconds
            self._speeds[shape, num_decoding] = speed
        return speed

    def _is_probing(self) -> bool:
        """Count a step that would be off, and say whether it is one of the few in which to try."""
        self._steps_off += 1
        if self._steps_off <= self._interval:
            return False
        if self._steps_off == self._interval + 1:
            for record in (self._overall, *self._by_shape.values()):
                record.scale(min(1.0, _PROBE_TOKENS / max(record.predicted, 1e-9)))
        if self._steps_off == self._interval + self._probe_steps:
            self._steps_off = 0
            self._interval = min(2 * self._interval, self._max_interval)
        return True


def parse_speculation(text: str) -> Literal["off", "auto"] | TreeShape:
    """Read `off`, `auto`, or a fixed tree `N,W,K` such as `12,4,4`.

    Raises:
        EnginewrightError: anything else, or a tree out of its bounds.
    """
    if text == "off":
        return "off"
    if text == "auto":
        return "auto"
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise EnginewrightError(
            f"speculation={text!r} is not off, auto or a tree N,W,K (nodes, beams, depth), such as 12,4,4"
        )
    return TreeShape(*map(int, parts))
