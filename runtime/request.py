"""One generation on its way through the engine: its tokens, its blocks and how far it has got."""

from dataclasses import dataclass, field
from typing import Literal

from runtime.sampling import SamplingParams
from runtime.sampling_rules.rules import TextRules
from runtime.speculation.statistics import SpeculationStatistics

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(eq=False)
class Request:
    """State of one sample of one prompt. The scheduler and the engine alone change it.

    A request is in prefill until the logits of its last known token are planned; from then on it is decoding, and its
    next token comes from the device. Known token t has its key and value in the cache, or in a step on its way there,
    when t < num_computed; once decoding, all but the last have. While steps are unread the text is longer than the
    host knows, by at most `num_in_flight`.
    """

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    sample_index: int
    max_tokens: int
    stop_ids: frozenset[int]
    statistics: SpeculationStatistics
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_in_flight: int = 0  # most tokens that the unread steps can add
    is_decoding: bool = False
    blocks: list[int] = field(default_factory=list)
    slot: int | None = None
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    rules: TextRules | None = None  # of requests that ask for some; their steps are read at once
    cache_salt: str = ""  # blocks are shared with requests of the same salt alone
    chain: list[bytes] = field(default_factory=list)  # keys of the root and of the first blocks, as far as asked for
    num_published: int = 0  # leading blocks that are registered for others
    admitted_at: float | None = None  # `time.perf_counter` of the first step that it had a part in

    @property
    def num_known(self) -> int:
        """Tokens of prompt and output that the host has."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_settled(self) -> int:
        """Leading tokens that the host has and whose keys are in the cache, or in a step on its way there."""
        return max(min(self.num_computed, self.num_known), self.num_known - 1 if self.is_decoding else 0)

    @property
    def num_tokens(self) -> int:
        """The most tokens that prompt and output can have once all steps are read."""
        return self.num_known + self.num_in_flight

    @property
    def num_wanted(self) -> int:
        """Tokens still to be drawn for sure, however many the unread steps add."""
        return max(0, self.max_tokens - len(self.output_ids) - self.num_in_flight)

    def known_ids(self, start: int, count: int) -> list[int]:
        """The known tokens start .. start + count."""
        end, offset = start + count, len(self.prompt_ids)
        return self.prompt_ids[start:end] + self.output_ids[max(start - offset, 0) : max(end - offset, 0)]
