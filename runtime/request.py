"""One generation on its way through the engine: its tokens, its blocks and how far it has got."""

from dataclasses import dataclass, field
from typing import Literal

from runtime.sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(eq=False)
class Request:
    """State of one sample of one prompt. The scheduler and the engine alone change it.

    Token t has its key and value in the cache, or in a step on its way there, when t < num_computed. Tokens drawn by
    a step that the host has not read yet are counted in `num_in_flight`.
    """

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    sample_index: int
    max_tokens: int
    stop_ids: frozenset[int]
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_in_flight: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int | None = None
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output, those in flight included."""
        return len(self.prompt_ids) + len(self.output_ids) + self.num_in_flight

    @property
    def num_pending(self) -> int:
        """Tokens that the next steps must compute; 0 when no further token is wanted."""
        if len(self.output_ids) + self.num_in_flight >= self.max_tokens:
            return 0
        return self.num_tokens - self.num_computed

    def pending_ids(self, count: int) -> list[int] | None:
        """The next `count` tokens to compute; None where that is one token still in flight."""
        start, end = self.num_computed, self.num_computed + count
        if end > len(self.prompt_ids) + len(self.output_ids):
            return None
        if start >= len(self.prompt_ids):  # decode: no copy of the prompt
            offset = len(self.prompt_ids)
            return self.output_ids[start - offset : end - offset]
        return (self.prompt_ids + self.output_ids)[start:end]
