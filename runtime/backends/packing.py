"""From a step's plan to the packed batch: what the host knows, completed with what only the device knows."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from runtime.backends.device_state import DeviceState
from runtime.batch import Batch, PlanRow, StepPlan
from runtime.sampling_rules.rules import TextRules
from runtime.speculation.drafter import DraftContext
from runtime.speculation.tree import DraftTree, TreeShape, root_only

Propose = Callable[[DraftContext, TreeShape], DraftTree]


class Drawing(NamedTuple):
    """The E rows of a step that draw tokens, in the plan's order; without a draft the tree is its root alone."""

    slots: torch.Tensor  # (E,)
    roots: torch.Tensor  # (E,) position of the root: the token whose logits draw the first new one
    first_rows: torch.Tensor  # (E,) which of the batch's R logit rows is the root's; its tree's follow
    block_tables: torch.Tensor  # (E, max_blocks)
    tree: DraftTree  # (E, N)
    rules: Mapping[int, TextRules]  # of those of the E rows that have some


def pack(plan: StepPlan, state: DeviceState, propose: Propose | None) -> tuple[Batch, Drawing]:
    """Draft where the plan asks for it, and pack the rows' new tokens without padding."""
    rows = plan.rows

    def tensor(values: Sequence[int] | Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=state.device)

    max_blocks = max(len(row.blocks) for row in rows)
    tables = tensor([row.blocks + [0] * (max_blocks - len(row.blocks)) for row in rows])
    slots, counts = tensor([row.slot for row in rows]), tensor([row.num_tokens for row in rows])
    starts = [0, *accumulate(row.num_tokens for row in rows)]
    is_drawn = tensor([row.token_ids is None for row in rows]).bool()
    first = torch.where(is_drawn, state.last_positions(slots), tensor([row.start for row in rows]))
    roots = torch.where(is_drawn, first, first + counts - 1)
    tree = _trees(plan, state, slots, roots, tables, propose)

    owners = torch.repeat_interleave(counts, output_size=starts[-1])
    offsets = torch.arange(starts[-1], device=state.device) - tensor(starts)[owners]
    nodes = offsets.clamp(max=tree.token_ids.shape[1] - 1)
    token_drawn = is_drawn[owners]
    host_ids = tensor([token for row in rows for token in row.token_ids or [0] * row.num_tokens])
    batch = Batch(
        token_ids=torch.where(token_drawn, tree.token_ids[owners, nodes].clamp(min=0), host_ids),
        positions=first[owners] + torch.where(token_drawn, tree.depths[owners, nodes], offsets),
        cache_positions=first[owners] + offsets,
        query_starts=tensor(starts),
        context_lens=first + counts,
        block_tables=tables,
        logit_rows=tensor([i for row, end in zip(rows, starts[1:], strict=True) for i in _logit_rows(row, end)]),
        ancestors=tree.ancestors * tensor([row.drafts for row in rows]).unsqueeze(1) if plan.shape else None,
    )
    draws = [index for index, row in enumerate(rows) if row.emits]
    first_rows = [0, *accumulate(len(_logit_rows(row, 0)) for row in rows)]
    at = tensor(draws)
    drawn_tree = tree if len(draws) == len(rows) else DraftTree(*(part[at] for part in tree))
    rules = {i: text_rules for i, index in enumerate(draws) if (text_rules := rows[index].rules) is not None}
    first_of_draws = tensor([first_rows[index] for index in draws])
    return batch, Drawing(slots[at], roots[at], first_of_draws, tables[at], drawn_tree, rules)


def _logit_rows(row: PlanRow, end: int) -> range:
    """Which of the tokens that end at `end` get logits: all of a tree, otherwise the last, if it draws a token."""
    return range(end - (row.num_tokens if row.drafts else row.emits), end)


def _trees(
    plan: StepPlan,
    state: DeviceState,
    slots: torch.Tensor,
    roots: torch.Tensor,
    tables: torch.Tensor,
    propose: Propose | None,
) -> DraftTree:
    """One tree per row of the plan; rows that do not draft have their root alone."""
    tree = root_only(state.history[slots, roots], plan.shape.num_nodes if plan.shape else 1)
    if plan.shape is None:
        return tree
    assert propose is not None, "a plan with draft trees needs a drafter"
    drafting = torch.tensor([index for index, row in enumerate(plan.rows) if row.drafts], device=state.device)
    samples = any(state.samples[row.slot] for row in plan.rows if row.drafts)
    drafted = propose(state.draft_context(slots[drafting], tables[drafting], samples), plan.shape)
    return DraftTree(*(whole.index_copy(0, drafting, part) for whole, part in zip(tree, drafted, strict=True)))
