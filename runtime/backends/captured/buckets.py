"""Which fixed layout a step is padded to, so that few graphs serve all steps.

Padding is rows of a request that does not exist: its slot is the state's last, its blocks are the cache's last.
"""

from dataclasses import dataclass

from runtime.backends.base import EngineLimits
from runtime.backends.packing import Layout
from runtime.batch import PlanRow, StepPlan
from runtime.errors import EnginewrightError
from runtime.speculation.tree import MAX_NODES

SMALLEST_PROMPT = 16  # tokens of the smallest layout for steps with prompts


@dataclass(frozen=True)
class Buckets:
    """Layouts of one engine, in powers of two.

    Three kinds of step have one: every request decodes one token; every request verifies a tree of one shape; or some
    are in prefill, and none drafts.

    Raises:
        EnginewrightError: a step may have more tokens than the longest text, so padding would have no positions.
    """

    limits: EngineLimits

    def __post_init__(self) -> None:
        if self.limits.max_num_tokens > self.limits.max_seq_len:
            raise EnginewrightError(
                f"max_num_tokens is {self.limits.max_num_tokens}; with captured graphs it may be no more than "
                f"max_seq_len, {self.limits.max_seq_len}"
            )

    @property
    def dummy_slot(self) -> int:
        return self.limits.max_batch_size

    @property
    def dummy_block(self) -> int:
        return self.limits.num_blocks

    @property
    def max_blocks(self) -> int:
        """Blocks that the longest request can have, the nodes of a tree at its end included."""
        return -(-(self.limits.max_seq_len + MAX_NODES) // self.limits.block_size)

    @property
    def largest(self) -> tuple[Layout, ...]:
        """The largest layout with prompts, and of decoding: of steps without drafts none needs more memory."""
        limits, most_rows = self.limits, self.limits.max_batch_size
        with_prompts = most_rows + 1, limits.max_num_tokens, most_rows + 1, most_rows + 1
        return (
            Layout(*with_prompts, 0, self.max_blocks, False),
            Layout(most_rows, most_rows, most_rows, most_rows, 0, self.max_blocks, True),
        )

    def layout(self, plan: StepPlan) -> Layout:
        """The layout that a plan is padded to."""
        rows, most_rows = plan.rows, self.limits.max_batch_size
        if plan.shape is not None:
            assert all(row.drafts for row in rows), "drafts beside other rows have no layout: plan uniform drafts"
            num_rows = power_of_two(len(rows), most_rows)
            num_nodes = num_rows * plan.shape.num_nodes
            return Layout(num_rows, num_nodes, num_nodes, num_rows, num_rows, self.max_blocks, False, plan.shape)
        if all(row.token_ids is None for row in rows):
            num_rows = power_of_two(len(rows), most_rows)
            return Layout(num_rows, num_rows, num_rows, num_rows, 0, self.max_blocks, True)
        num_rows = power_of_two(len(rows) + 1, most_rows + 1)  # one row at least for the tokens that are missing
        wanted = sum(row.num_tokens for row in rows)
        num_tokens = power_of_two(wanted, self.limits.max_num_tokens, SMALLEST_PROMPT)
        return Layout(num_rows, num_tokens, num_rows, num_rows, 0, self.max_blocks, False)

    def pad(self, plan: StepPlan, layout: Layout) -> StepPlan:
        """Add the rows that a layout has and a plan has not. Rows that draw nothing draw for nobody."""
        rows = [row if row.emits else row._replace(emits=True, slot=self.dummy_slot) for row in plan.rows]
        missing = layout.num_rows - len(rows)
        if layout.shape is not None:
            rows += [self._row(None, layout.shape.num_nodes, drafts=True)] * missing
        elif layout.one_each:
            rows += [self._row([0], 1)] * missing
        else:
            num_tokens = layout.num_tokens - sum(row.num_tokens for row in rows)
            rows += [self._row([0] * num_tokens, num_tokens), *[self._row([], 0)] * (missing - 1)]
        return plan._replace(rows=rows)

    def nothing(self, layout: Layout) -> StepPlan:
        """A plan of padding alone, to try a layout with."""
        return self.pad(StepPlan([], layout.shape), layout)

    def _row(self, token_ids: list[int] | None, num_tokens: int, drafts: bool = False) -> PlanRow:
        blocks = [self.dummy_block] * self.max_blocks
        return PlanRow(self.dummy_slot, token_ids, 0, num_tokens, blocks, True, None, drafts)


def power_of_two(wanted: int, most: int, least: int = 1) -> int:
    """The smallest power of two that is `wanted` or more, within the bounds."""
    return min(max(least, 1 << max(wanted - 1, 0).bit_length()), most)
