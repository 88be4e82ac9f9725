"""How many tokens of a prompt a step may take in beside requests that decode, by the time that they cost.

Knows time only through the costs, so equal inputs give equal choices. See docs/pacing.md.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from runtime.errors import EnginewrightError
from runtime.pacing.costs import ChunkCosts

AUTO_RATIO = 8.0  # chunks that are nearly as fast for each token as the longest, and no wait that is felt as a halt
LEAST_SPEED = 0.25  # of a prompt's full speed, at which it gets on whatever the ratio

Points = list[tuple[int, float]]  # (tokens, seconds) as `ChunkCosts.chunk_points` has them


class Pace:
    """Lets a step with prompts last `ratio` times what its decodes alone would take."""

    def __init__(self, costs: ChunkCosts, ratio: float) -> None:
        """`ratio` is above 1, or prompts have no time."""
        self.costs = costs
        self.ratio = ratio

    def most_tokens(self, decoding: Sequence[int], planned: Iterable[tuple[int, int]], start: int) -> int:
        """How many tokens a request that has `start` of its tokens computed may add to a step.

        Each chunk has a fixed cost, so short ones are slow work. The first of a step is not so short that its tokens
        cost more than 1 / LEAST_SPEED of what they would in the longest: no ratio can starve a prompt.

        Args:
            decoding: the keys that each request which decodes in the step sees. Its draft tree counts for nothing.
            planned: (tokens, start) of the step's chunks so far.
        """
        left = (self.ratio - 1.0) * self.costs.decode_step(len(decoding), sum(decoding))
        points = self.costs.chunk_points(start)
        chunks = list(planned)
        if not chunks:
            return max(longest_within(points, left), _shortest(points))
        left -= sum(seconds_of(self.costs.chunk_points(begun), count) for count, begun in chunks)
        return longest_within(points, left)


def parse_ratio(text: str, device_type: str) -> float | None:
    """Read `auto`, `off` or a number above 1; None is off. Steps of a GPU are short, so that auto is off there.

    Raises:
        EnginewrightError: anything else.
    """
    if text == "auto":
        return None if device_type == "cuda" else AUTO_RATIO
    if text == "off":
        return None
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 1.0 < ratio < math.inf:
        raise EnginewrightError(f"itl_ratio={text!r} is not auto, off or a number above 1, such as 1.5")
    return ratio


def longest_within(points: Points, seconds: float) -> int:
    """The most tokens that cost at most `seconds`, among chunks up to the longest that was timed."""
    if seconds < points[0][1]:
        return 0
    for (count, cost), (next_count, next_cost) in pairwise(points):
        if seconds < next_cost:
            return count + int((next_count - count) * (seconds - cost) / (next_cost - cost))
    return points[-1][0]


def seconds_of(points: Points, num_tokens: int) -> float:
    """What so many tokens cost, at most as many as the longest chunk that was timed has."""
    for (count, cost), (next_count, next_cost) in pairwise(points):
        if num_tokens <= next_count:
            return cost + (next_cost - cost) * max(num_tokens - count, 0) / (next_count - count)
    return points[-1][1]


def _shortest(points: Points) -> int:
    """The fewest tokens that cost at most 1 / LEAST_SPEED of what they would as part of the longest chunk."""
    longest, total = points[-1]
    each = total / longest / LEAST_SPEED
    for (count, cost), (next_count, next_cost) in pairwise(points):
        if cost <= each * count:
            return count
        if next_cost <= each * next_count:  # between the two: cost + slope * n = each * (count + n)
            slope = (next_cost - cost) / (next_count - count)
            return count + math.ceil((cost - each * count) / (each - slope))
    return longest
