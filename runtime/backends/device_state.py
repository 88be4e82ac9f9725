"""What a running request keeps on the device between steps: its text, how it draws tokens, what a drafter reads."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy
import torch

from plugins.accept import accept as accept_drawn
from plugins.draft_pass import DraftTexts, DrawNoise
from plugins.emit_tokens import Report, emit_tokens
from plugins.sample import sample, sample_slots
from runtime.model.decoder import DecoderOutput
from runtime.request import Request
from runtime.sampling_rules.rules import TextRules
from runtime.sampling_rules.walk import adjust
from runtime.speculation.acceptance import Accepted, accept
from runtime.speculation.drafter import DraftContext
from runtime.speculation.tree import MAX_NODES, DraftTree


class Drawing(NamedTuple):
    """The E rows of a step that draw tokens, in the plan's order."""

    slots: torch.Tensor  # (E,)
    roots: torch.Tensor  # (E,) position of the root: the token whose logits draw the first new one
    first_rows: torch.Tensor  # (E,) which of the batch's R logit rows is the root's; its tree's follow
    block_tables: torch.Tensor  # (E, max_blocks)
    tree: DraftTree | None  # (E, N); None where no request of the step drafts


class _DrawParams(NamedTuple):
    """What `sample` takes of a request, in its order."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    sample_index: torch.Tensor


class _SlotContext:
    """See `DraftContext`: a drafter that does not read a part costs no gather of it."""

    def __init__(self, state: "DeviceState", slots: torch.Tensor, block_tables: torch.Tensor, samples: bool) -> None:
        self.block_tables = block_tables
        self.samples = samples
        self._state = state
        self._slots = slots

    @property
    def texts(self) -> tuple[DraftTexts, DrawNoise] | None:
        state = self._state
        if state.hidden.dtype != torch.float32:
            return None
        texts = DraftTexts(self._slots, state.hidden, state.num_tokens, state.history)
        return texts, DrawNoise(state.temperature, state.seed, state.sample_index)

    @cached_property
    def positions(self) -> torch.Tensor:
        return self._state.last_positions(self._slots)

    @cached_property
    def root_ids(self) -> torch.Tensor:
        return self._state.history[self._slots, self.positions]

    @cached_property
    def hidden(self) -> torch.Tensor:
        return self._state.hidden[self._slots]

    @cached_property
    def history(self) -> torch.Tensor:
        return self._state.history[self._slots]

    @cached_property
    def temperature(self) -> torch.Tensor:
        return self._state.temperature[self._slots]

    @cached_property
    def top_k(self) -> torch.Tensor:
        return self._state.top_k[self._slots]

    @cached_property
    def top_p(self) -> torch.Tensor:
        return self._state.top_p[self._slots]

    @cached_property
    def min_p(self) -> torch.Tensor:
        return self._state.min_p[self._slots]

    @cached_property
    def seed(self) -> torch.Tensor:
        return self._state.seed[self._slots]

    @cached_property
    def sample_index(self) -> torch.Tensor:
        return self._state.sample_index[self._slots]


class DeviceState:
    """One row per request slot; rows of slots in use are valid, others hold what their last request left.

    The last token of a decoding request, which the next step computes first, is at position num_tokens - 1.
    """

    def __init__(self, num_slots: int, max_seq_len: int, hidden: torch.Tensor) -> None:
        """`hidden`: (0, H), of the dtype and device of the target's hidden states."""
        self.device = hidden.device
        self.num_tokens = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        # A step writes all of an accepted path's possible tokens, so the row is longer than a text.
        self.history = torch.zeros(num_slots, max_seq_len + MAX_NODES, dtype=torch.int64, device=self.device)
        self.hidden = hidden.new_zeros(
            num_slots, hidden.shape[1]
        )  # after the final norm, where the last token was drawn
        self.samples = [False] * num_slots  # on the host: whether the temperature is above 0
        self.temperature = torch.zeros(num_slots, dtype=torch.float32, device=self.device)
        self.top_k = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self.top_p = torch.ones(num_slots, dtype=torch.float32, device=self.device)
        self.min_p = torch.zeros(num_slots, dtype=torch.float32, device=self.device)
        self.seed = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self.sample_index = torch.zeros(num_slots, dtype=torch.int64, device=self.device)

        self._zeros = torch.zeros_like(self.seed)  # that nobody writes to: a recorded step fills none of its own
        self._ones = torch.ones_like(self.seed)

    def reset(self) -> None:
        """Make every slot that of a text with one token, as nobody reads it."""
        self.num_tokens.fill_(1)
        self.history.zero_()

    def admit(self, requests: Sequence[Request]) -> None:
        """Give the requests' slots their texts so far and how they draw tokens.

        All of them together, in three copies: a burst of requests would wait for hundreds of small ones.
        """
        if not requests:
            return
        whole, real, texts = [], [], []
        for request in requests:
            slot, params = request.slot, request.params
            assert slot is not None, "a request without a slot has no state"
            self.samples[slot] = params.temperature > 0
            whole.append([slot, params.top_k, request.seed, request.sample_index])
            real.append([params.temperature, params.top_p, params.min_p])
            text = numpy.array(request.known_ids(0, request.num_known), dtype=numpy.int64)
            texts.append(numpy.stack([numpy.full_like(text, slot), numpy.arange(len(text)), text]))
        slots, top_k, seed, sample_index = torch.tensor(whole, device=self.device).unbind(1)
        self.top_k[slots], self.seed[slots], self.sample_index[slots] = top_k, seed, sample_index
        shares = torch.tensor(real, dtype=torch.float32, device=self.device)
        self.temperature[slots], self.top_p[slots], self.min_p[slots] = shares.unbind(1)
        owners, positions, token_ids = torch.from_numpy(numpy.concatenate(texts, axis=1)).to(self.device).unbind(0)
        self.history[owners, positions] = token_ids

    def last_positions(self, slots: torch.Tensor) -> torch.Tensor:
        """(n,) slots of decoding requests -> positions of their last tokens."""
        return self.num_tokens[slots] - 1

    def draft_context(self, slots: torch.Tensor, block_tables: torch.Tensor, samples: bool) -> DraftContext:
        """What a drafter reads of the decoding requests in `slots` (n,), whose blocks are (n, max_blocks).

        samples: whether one of them has a temperature above 0.
        """
        return _SlotContext(self, slots, block_tables, samples)

    def draw(
        self,
        drawing: Drawing,
        depth: int,
        output: DecoderOutput,
        rules: Mapping[int, TextRules] | None = None,
        report: Report | None = None,
    ) -> Accepted:
        """Emit tokens for the rows of a step that draw, given the target's pass, and remember them.

        depth: of the trees' deepest node.
        rules: of those of the rows that have some.
        report: where the host reads them from, if not from what is returned.
        """
        tree = drawing.tree
        if tree is None:
            accepted = self._draw_once(drawing, output.logits, rules)
        elif self.device.type == "cuda" and not rules and len(output.logits) == tree.token_ids.numel():
            accepted = self._draw_everywhere(drawing, tree, depth, output.logits)
        else:
            accepted = self._walk(drawing, tree, depth, output.logits, rules)
        emit_tokens(
            drawing.slots, drawing.roots, drawing.first_rows, accepted.token_ids, accepted.nodes, accepted.counts,
            output.hidden, self.num_tokens, self.history, self.hidden, None if tree is None else tree.token_ids, report,
        )  # fmt: skip
        return accepted

    @property
    def _draws(self) -> _DrawParams:
        """How every slot draws tokens."""
        return _DrawParams(self.temperature, self.top_k, self.top_p, self.min_p, self.seed, self.sample_index)

    def _draw_once(
        self, drawing: Drawing, logits: torch.Tensor, rules: Mapping[int, TextRules] | None
    ) -> Accepted:  # fmt: skip
        """Draw one token for each row; (E, V) logits."""
        if rules:
            logits = adjust(logits, rules, torch.ones_like(drawing.slots, dtype=torch.bool), [])
        token_ids = torch.empty_like(drawing.slots)
        sample_slots(logits, self._draws, drawing.slots, drawing.roots, None, token_ids)
        rows = len(token_ids)
        return Accepted(token_ids.unsqueeze(1), self._zeros[:rows].unsqueeze(1), self._ones[:rows])

    def _walk(
        self, drawing: Drawing, tree: DraftTree, depth: int, all_logits: torch.Tensor,
        rules: Mapping[int, TextRules] | None,
    ) -> Accepted:  # fmt: skip
        """Draw down each tree, level by level: only where a path goes."""
        params = _DrawParams(*(values[drawing.slots] for values in self._draws))
        drawn: list[torch.Tensor] = []

        def draw_at(nodes: torch.Tensor, level: int, alive: torch.Tensor) -> torch.Tensor:
            logits = all_logits[drawing.first_rows + nodes]
            if rules:
                logits = adjust(logits, rules, alive, drawn)
            # A request that has stopped draws greedily: an argmax costs nothing, and nobody reads it.
            now = params._replace(temperature=params.temperature * alive)
            token_ids = torch.empty_like(nodes)
            drawn.append(sample(logits, *now, drawing.roots + level + 1, token_ids))
            return drawn[-1]

        return accept(tree, depth, draw_at)

    def _draw_everywhere(self, drawing: Drawing, tree: DraftTree, depth: int, logits: torch.Tensor) -> Accepted:
        """Draw at every node of every tree at once, which a GPU does in the time of one, then walk."""
        depths = tree.depths.flatten()
        drawn = sample_slots(logits, self._draws, drawing.slots, drawing.roots, depths, torch.empty_like(depths))
        return Accepted(*accept_drawn(tree.token_ids, tree.parents, tree.depths, drawn.view_as(tree.depths), depth))
