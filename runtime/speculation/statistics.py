"""Counters of speculation, with vLLM's meaning where vLLM has the same counter. Plain integers of the host."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeculationSnapshot:
    """Counts up to one moment; subtract an earlier one for those between."""

    num_drafts: int = 0  # trees verified, one per request and step
    num_draft_tokens: int = 0  # nodes of those trees, roots and padding left out
    num_accepted_tokens: int = 0  # drafted tokens that the target drew too
    num_accepted_tokens_per_pos: tuple[int, ...] = ()  # how often the path had a token at depth 1, 2, ...
    num_steps: int = 0  # passes of the target that emitted, counted per request, the prefill's left out
    num_emitted_tokens: int = 0  # in those passes; fewer than accepted + 1 where a request ended inside a path

    @property
    def accepted_length(self) -> float:
        """Tokens emitted per target step; 1 without speculation, and before the first step."""
        return self.num_emitted_tokens / self.num_steps if self.num_steps else 1.0

    @property
    def acceptance_rate(self) -> float:
        """The share of drafted tokens that was accepted; 0 before the first draft."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    def __sub__(self, earlier: "SpeculationSnapshot") -> "SpeculationSnapshot":
        before = earlier.num_accepted_tokens_per_pos
        before += (0,) * (len(self.num_accepted_tokens_per_pos) - len(before))
        return SpeculationSnapshot(
            self.num_drafts - earlier.num_drafts,
            self.num_draft_tokens - earlier.num_draft_tokens,
            self.num_accepted_tokens - earlier.num_accepted_tokens,
            tuple(now - then for now, then in zip(self.num_accepted_tokens_per_pos, before, strict=True)),
            self.num_steps - earlier.num_steps,
            self.num_emitted_tokens - earlier.num_emitted_tokens,
        )


class SpeculationStatistics:
    """Counts of one request, or of all; what is recorded for a request counts in its `total` as well."""

    def __init__(self, total: "SpeculationStatistics | None" = None) -> None:
        self._total = total
        self._num_drafts = 0
        self._num_draft_tokens = 0
        self._num_steps = 0
        self._num_emitted_tokens = 0
        self._num_runs_of_len: list[int] = []  # index i: drafts of which exactly i tokens were accepted

    def record_step(self, num_emitted_tokens: int = 1) -> None:
        """Count a pass over one request without a draft; the prefill's is not counted."""
        self._num_steps += 1
        self._num_emitted_tokens += num_emitted_tokens
        if self._total is not None:
            self._total.record_step(num_emitted_tokens)

    def record_draft(self, num_draft_tokens: int, num_accepted_tokens: int, num_emitted_tokens: int) -> None:
        """Count a pass over one request's tree: how many tokens it had, how many the target drew too, and emitted."""
        self._num_drafts += 1
        self._num_draft_tokens += num_draft_tokens
        self._num_steps += 1
        self._num_emitted_tokens += num_emitted_tokens
        missing = num_accepted_tokens + 1 - len(self._num_runs_of_len)
        if missing > 0:
            self._num_runs_of_len += [0] * missing
        self._num_runs_of_len[num_accepted_tokens] += 1
        if self._total is not None:
            self._total.record_draft(num_draft_tokens, num_accepted_tokens, num_emitted_tokens)

    def snapshot(self) -> SpeculationSnapshot:
        """The counts now."""
        runs = self._num_runs_of_len
        per_pos = tuple(sum(runs[depth:]) for depth in range(1, len(runs)))
        return SpeculationSnapshot(
            self._num_drafts, self._num_draft_tokens, sum(per_pos), per_pos, self._num_steps, self._num_emitted_tokens
        )
