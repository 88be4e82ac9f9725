"""What became of one request: the raw record that all figures are computed from."""

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Sample:
    """One line of samples.jsonl. Times are in seconds; those of text count from the moment the request was due.

    output_tokens: as the endpoint's usage says, or the pieces of text where it sends none.
    error: why there is no whole answer; None where there is.
    """

    scenario: str
    index: int
    due_s: float  # since the scenario began
    sent_s: float = 0.0  # how much later it was sent
    text_s: list[float] = field(default_factory=list)  # when each piece of text came
    total_s: float = 0.0  # when the answer had ended
    prompt_tokens: int | None = None
    output_tokens: int = 0
    has_usage: bool = False
    finish_reason: str | None = None
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.text_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Between pieces of text; tokens that came in one piece have no gap."""
        return [later - earlier for earlier, later in pairwise(self.text_s)]

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first; 0 for an answer of one token."""
        return (self.text_s[-1] - self.text_s[0]) / max(self.output_tokens - 1, 1)
