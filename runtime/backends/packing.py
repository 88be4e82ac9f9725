"""From a step's plan to the packed batch: what the host knows, completed with what only the device knows.

What the host knows is one tensor of integers, so that it reaches the device in one copy, and at the same place of the
same `Layout` each time, which a captured graph needs.
"""

from collections.abc import Callable
from itertools import accumulate, chain, repeat
from typing import NamedTuple

import numpy
import torch

from plugins.place_tokens import place_tokens
from runtime.backends.device_state import DeviceState, Drawing
from runtime.batch import Batch, PlanRow, StepPlan
from runtime.speculation.drafter import DraftContext
from runtime.speculation.tree import DraftTree, TreeShape, root_only

Propose = Callable[[DraftContext, TreeShape], DraftTree]


class Layout(NamedTuple):
    """The sizes of a packed step. Two steps of one layout differ in values alone."""

    num_rows: int  # B, requests
    num_tokens: int  # T
    num_logits: int  # R
    num_draws: int  # E
    num_drafts: int  # requests with a draft tree
    max_blocks: int
    one_each: bool  # every request has one new token
    shape: TreeShape | None = None

    @property
    def most_each(self) -> int | None:
        """No request has more new tokens; None where only T says."""
        if self.one_each:
            return 1
        return self.shape.num_nodes if self.shape and self.num_drafts == self.num_rows else None

    @property
    def sizes(self) -> list[int]:
        """Lengths of the parts of `PackedPlan`, in order."""
        rows, draws = self.num_rows, self.num_draws
        return [rows, rows + 1, rows, rows, rows, draws, draws, self.num_drafts, self.num_logits, self.num_tokens,
                rows * self.max_blocks]  # fmt: skip


class PackedPlan(NamedTuple):
    """What the host knows of a step: parts of one int64 tensor."""

    slots: torch.Tensor  # (B,)
    query_starts: torch.Tensor  # (B + 1,)
    starts: torch.Tensor  # (B,) position of the first new token, for requests whose tokens the host knows
    is_drawn: torch.Tensor  # (B,) 1 where a request goes on from the token that the state drew last
    drafts: torch.Tensor  # (B,) 1 where it has a draft tree
    draws: torch.Tensor  # (E,) the requests that draw a token
    first_rows: torch.Tensor  # (E,) see Drawing
    drafting: torch.Tensor  # the requests with a draft tree
    logit_rows: torch.Tensor  # (R,)
    token_ids: torch.Tensor  # (T,) those that the host knows
    block_tables: torch.Tensor  # (B * max_blocks,)


def pack(plan: StepPlan, state: DeviceState, propose: Propose | None) -> tuple[Batch, Drawing]:
    """Draft where the plan asks for it, and pack the rows' new tokens without padding."""
    layout = layout_of(plan)
    words = torch.from_numpy(host_words(plan, layout)).to(state.device)
    samples = any(state.samples[row.slot] for row in plan.rows if row.drafts)
    return unpack(words, layout, state, propose, samples)


def layout_of(plan: StepPlan) -> Layout:
    """The smallest layout that holds a plan."""
    rows = plan.rows
    return Layout(
        num_rows=len(rows),
        num_tokens=sum(row.num_tokens for row in rows),
        num_logits=sum(_num_logits(row) for row in rows),
        num_draws=sum(row.emits for row in rows),
        num_drafts=sum(row.drafts for row in rows),
        max_blocks=max(len(row.blocks) for row in rows),
        one_each=all(row.num_tokens == 1 for row in rows),
        shape=plan.shape,
    )


def host_words(plan: StepPlan, layout: Layout) -> numpy.ndarray:
    """The int64 words of a plan, in the order of `PackedPlan`."""
    rows = plan.rows
    starts = [0, *accumulate(row.num_tokens for row in rows)]
    first_rows = [0, *accumulate(_num_logits(row) for row in rows)]
    draws = [index for index, row in enumerate(rows) if row.emits]
    tables = numpy.zeros((layout.num_rows, layout.max_blocks), dtype=numpy.int64)
    for table, row in zip(tables, rows, strict=True):
        table[: len(row.blocks)] = row.blocks
    parts: list[list[int]] = [
        [row.slot for row in rows],
        starts,
        [row.start for row in rows],
        [row.token_ids is None for row in rows],
        [row.drafts for row in rows],
        draws,
        [first_rows[index] for index in draws],
        [index for index, row in enumerate(rows) if row.drafts],
        [at for row, end in zip(rows, starts[1:], strict=True) for at in range(end - _num_logits(row), end)],
    ]
    words = numpy.fromiter(chain.from_iterable(parts), dtype=numpy.int64)
    tokens = (row.token_ids or repeat(0, row.num_tokens) for row in rows)
    token_ids = numpy.fromiter(chain.from_iterable(tokens), dtype=numpy.int64)
    return numpy.concatenate([words, token_ids, tables.reshape(-1)])


def unpack(
    words: torch.Tensor,
    layout: Layout,
    state: DeviceState,
    propose: Propose | None,
    samples: bool,
    turn: torch.Tensor | None = None,
) -> tuple[Batch, Drawing]:
    """Complete a plan on the device: no wait for the host, and the same operations for every plan of a layout.

    samples: whether a request that drafts has a temperature above 0.
    turn: (1,) which pass of a plan this is, counted up; None where nobody asks.
    """
    plan = PackedPlan(*words.split(layout.sizes))
    tables = plan.block_tables.view(layout.num_rows, layout.max_blocks)
    tree = _trees(plan, layout, tables, state, propose, samples) if layout.shape else None
    token_ids, positions, cache_positions, context_lens, roots = place_tokens(
        plan.slots, plan.query_starts, plan.starts, plan.is_drawn, plan.token_ids, state.num_tokens, state.history,
        tree.token_ids if tree else None, tree.depths if tree else None, turn,
    )  # fmt: skip
    batch = Batch(
        token_ids=token_ids,
        positions=positions,
        cache_positions=cache_positions,
        query_starts=plan.query_starts,
        context_lens=context_lens,
        block_tables=tables,
        logit_rows=plan.logit_rows,
        ancestors=_ancestors(plan, layout, tree) if tree else None,
        max_query_len=layout.most_each,
    )
    if layout.num_draws == layout.num_rows:
        return batch, Drawing(plan.slots, roots, plan.first_rows, tables, tree)
    drawn_tree = DraftTree(*(part[plan.draws] for part in tree)) if tree else None
    return batch, Drawing(plan.slots[plan.draws], roots[plan.draws], plan.first_rows, tables[plan.draws], drawn_tree)


def _trees(
    plan: PackedPlan, layout: Layout, tables: torch.Tensor, state: DeviceState, propose: Propose | None, samples: bool
) -> DraftTree:  # fmt: skip
    """One tree per request; those that do not draft have their root alone."""
    assert layout.shape is not None
    assert propose is not None, "a plan with draft trees needs a drafter"
    if layout.num_drafts == layout.num_rows:
        drafted = propose(state.draft_context(plan.slots, tables, samples), layout.shape)
        return DraftTree(*(part.contiguous() for part in drafted))
    drafted = propose(
        state.draft_context(plan.slots[plan.drafting], tables[plan.drafting], samples), layout.shape
    )  # fmt: skip
    last = state.last_positions(plan.slots).clamp(min=0)
    whole = root_only(state.history[plan.slots, last], layout.shape.num_nodes)
    return DraftTree(*(all_.index_copy(0, plan.drafting, part) for all_, part in zip(whole, drafted, strict=True)))


def _ancestors(plan: PackedPlan, layout: Layout, tree: DraftTree) -> torch.Tensor:
    """(B, N) as `Batch` has them: 0 for requests without a tree."""
    return tree.ancestors if layout.num_drafts == layout.num_rows else tree.ancestors * plan.drafts.unsqueeze(1)


def _num_logits(row: PlanRow) -> int:
    """How many of a row's last tokens get logits: all of a tree, otherwise the last, if it draws a token."""
    return row.num_tokens if row.drafts else int(row.emits)
