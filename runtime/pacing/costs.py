"""What a step costs on this device, and what a prompt's chunk adds to it, by their tokens and by the keys they see.

Knows no backend: it times the function that it is given.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from runtime.device_costs import interpolate, time_sizes

BATCH_SIZES = (1, 4, 16)  # requests that decode
CHUNK_LENS = (1, 4, 16, 64, 256, 1024)
FAR_CHUNK_LENS = (1, 64)  # of those timed behind a long text
BESIDE = 4  # requests that decode beside a chunk
NEAR_KEYS, FAR_KEYS = 256, 8192  # that a request's last token sees, where an engine holds so many
_SCHEMA = 1
_MOST_RUNS = 20  # of each size: a difference of two steps is small beside what disturbs one
_WORK_OF_A_TOKEN = 1024  # in keys that it sees, roughly, in a model of any size


class Line(NamedTuple):
    """Seconds of a chunk of `num_tokens` whose request has `start` tokens already: at_start + per_key * start."""

    num_tokens: int
    at_start: float
    per_key: float


class StepSize(NamedTuple):
    """`num_requests` that decode, over so many keys each; beside them a chunk, 0 tokens for none, and what it sees."""

    num_requests: int
    num_keys: int
    chunk_len: int = 0
    chunk_keys: int = 0


@dataclass(frozen=True)
class ChunkCosts:
    """Seconds on one device.

    decode_seconds: of a step in which so many requests decode, each over `near_keys` keys.
    key_seconds: of each key that one of them sees more, or less.
    chunks: what a chunk adds, shortest first.
    """

    near_keys: int
    decode_seconds: dict[int, float]
    key_seconds: float
    chunks: tuple[Line, ...]

    def decode_step(self, num_requests: int, num_keys: int) -> float:
        """Seconds of a step of so many decodes that see `num_keys` keys between them."""
        further = num_keys - num_requests * self.near_keys
        return interpolate(self.decode_seconds, num_requests) + self.key_seconds * further

    def chunk_points(self, start: int) -> list[tuple[int, float]]:
        """(tokens, seconds) of chunks behind `start` tokens, both rising; between two the way is straight."""
        seconds = accumulate((line.at_start + line.per_key * start for line in self.chunks), max)
        return [(line.num_tokens, each) for line, each in zip(self.chunks, seconds, strict=True)]

    def to_fields(self) -> dict[str, Any]:
        return {"schema": _SCHEMA, "near_keys": self.near_keys, "decode": list(self.decode_seconds.items()),
                "per_key": self.key_seconds, "chunks": self.chunks}  # fmt: skip

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "ChunkCosts | None":
        """None where they are of another version, or no whole table."""
        if fields["schema"] != _SCHEMA:
            return None
        decode = {int(count): float(seconds) for count, seconds in fields["decode"]}
        chunks = tuple(Line(int(count), float(first), float(each)) for count, first, each in fields["chunks"])
        costs = cls(int(fields["near_keys"]), decode, float(fields["per_key"]), chunks)
        seconds = [*decode.values(), costs.key_seconds, *(part for line in chunks for part in line[1:])]
        is_timed = all(math.isfinite(each) and each >= 0 for each in seconds)
        return costs if decode and chunks and is_timed else None


def near_keys(longest: int) -> int:
    """The keys that a request with a short text sees, on an engine that holds texts of `longest` tokens."""
    return min(NEAR_KEYS, longest // 2)


def measure_chunks(
    run: Callable[[StepSize], None],
    max_batch_size: int,
    max_num_tokens: int,
    longest: int,
    budget_seconds: float = 4.0,
    runs_each: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> ChunkCosts:
    """Time steps with chunks and without, each the best of three or more after a warm-up: noise only ever adds.

    A chunk's cost rises with the text before it by a part that it has anyway and a part for each of its tokens: two
    lengths behind a long text say both. What is too large for what is left of the time is taken to cost in proportion
    to its tokens and keys.

    Args:
        run: runs a step of such a size to its end on the device, `runs_each` times.
        max_batch_size, max_num_tokens: two at least, or no step has both a chunk and a decode.
        longest: tokens of one request.
    """
    far, near = min(FAR_KEYS, longest), near_keys(longest)
    beside = min(BESIDE, max_batch_size - 1, max_num_tokens - 1)
    largest = min(max_batch_size, max_num_tokens)
    batches = sorted({min(size, largest) for size in BATCH_SIZES} | {beside})
    lens = [count for count in CHUNK_LENS if count <= min(max_num_tokens - beside, far // 2)]
    near_chunks = {count: StepSize(beside, near, count, max(near, count)) for count in lens}
    far_lens = sorted({min(count, lens[-1]) for count in FAR_CHUNK_LENS})
    far_chunks = {count: StepSize(beside, near, count, far) for count in far_lens}
    decodes = {count: StepSize(count, near) for count in batches}
    far_decode = StepSize(1, far)
    sizes = {*decodes.values(), far_decode, *near_chunks.values(), *far_chunks.values()}
    seconds = time_sizes(sizes, run, _work, budget_seconds, runs_each, _MOST_RUNS, clock=clock)

    def per_key(few: StepSize, many: StepSize) -> float:
        return max(seconds[many] - seconds[few], 0.0) / max(_keys(many) - _keys(few), 1)

    rises = {count: per_key(near_chunks[count], far_chunks[count]) for count in far_lens}
    plain = seconds[decodes[beside]]
    return ChunkCosts(
        near,
        {count: seconds[size] for count, size in decodes.items()},
        per_key(decodes[1], far_decode),
        tuple(_line(size, seconds[size] - plain, _rise(rises, count)) for count, size in near_chunks.items()),
    )


def _keys(size: StepSize) -> int:
    """Of the request that sees the most."""
    return max(size.num_keys, size.chunk_keys)


def _work(size: StepSize) -> int:
    """What a step's time is in proportion to, roughly: tokens, and keys that they see."""
    decodes = size.num_requests * (_WORK_OF_A_TOKEN + size.num_keys)
    return decodes + size.chunk_len * (_WORK_OF_A_TOKEN + size.chunk_keys)


def _rise(rises: dict[int, float], num_tokens: int) -> float:
    """Seconds per token of the text before a chunk, by the lengths that were timed."""
    (first, low), (last, high) = min(rises.items()), max(rises.items())
    return low + max(high - low, 0.0) * (num_tokens - first) / max(last - first, 1)


def _line(size: StepSize, seconds: float, per_key: float) -> Line:
    """A chunk that adds `seconds` to a step behind the text that `size` says."""
    start = size.chunk_keys - size.chunk_len
    return Line(size.chunk_len, max(seconds - per_key * start, 0.0), per_key)
