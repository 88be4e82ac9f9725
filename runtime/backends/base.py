"""The engine contract, two levels: `forward` for whoever needs logits, `step` for generation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

from runtime.backends.device_state import DeviceState
from runtime.batch import Batch, StepPlan
from runtime.model.decoder import DecoderOutput
from runtime.speculation.drafter import Drafter

KvLayout = Literal["paged", "slots"]
BatchLayout = Literal["packed", "dense"]


@dataclass(frozen=True)
class EngineLimits:
    """What an engine was compiled for."""

    max_batch_size: int  # requests in one step
    max_seq_len: int  # tokens of one request, prompt and output
    max_num_tokens: int  # packed tokens in one step
    num_blocks: int
    block_size: int


class TokenLogprobs(NamedTuple):
    """Log-probabilities (nats) at one position, of the raw logits."""

    chosen: float
    top: list[tuple[int, float]]  # (token id, log-probability), most likely first


class StepResult(NamedTuple):
    """One entry per row that emits, in the plan's order; a row that drafted may emit several tokens."""

    token_ids: list[list[int]]
    num_drafted: list[int]  # nodes of each row's tree but the root and padding
    logprobs: list[list[TokenLogprobs] | None]


class TokenHandle(Protocol):
    """A step's result that may still be on its way from the device."""

    def read(self) -> list[StepResult]:
        """Wait for the plan's passes and return what each chose."""
        ...


class Backend(Protocol):
    """Runs steps. Tokens, random state and lengths stay in a `DeviceState`; the host reads `read_lag` steps late."""

    kv: KvLayout
    batch: BatchLayout
    read_lag: int  # plans that may be in flight when the next one is made
    most_repeats: int  # passes of one plan: many spare the host its work between them, and tokens come in bursts
    uniform_drafts: bool  # whether a step drafts for all of its requests or for none
    variant: str  # what its speed depends on besides the engine's files and the device; empty for nothing
    limits: EngineLimits
    vocab_size: int  # of the logits
    drafter: Drafter | None
    device: torch.device

    def forward(self, batch: Batch) -> DecoderOutput:
        """Level one: logits (R, V) and hidden states (R, H) of the batch's `logit_rows`."""
        ...

    def prepared(self, run: Callable[[], object]) -> Callable[[], object]:
        """Operations on fixed inputs, ready to be run again and again the way this backend runs a step's."""
        ...

    def new_state(self) -> DeviceState:
        """Make the state of `max_batch_size` request slots."""
        ...

    def step(self, plan: StepPlan, state: DeviceState) -> TokenHandle:
        """Level two: the plan's block copies, then its passes; rows that emit draw tokens into state and handle.

        A row that drafts has its tree drafted first, verified by the pass, and the accepted path's keys and values
        moved to where plain decoding would have put them.
        """
        ...
