"""What a step leaves: the tokens that requests got, in their texts and on their way to the host."""

from typing import NamedTuple

import torch

from plugins.emit_tokens.cuda import emit_tokens_cuda
from plugins.emit_tokens.plain import emit_tokens_plain
from plugins.library import define, implement

define(
    "emit_tokens(Tensor slots, Tensor roots, Tensor first_rows, Tensor token_ids, Tensor nodes, Tensor counts, "
    "Tensor hidden, Tensor(a!) num_tokens, Tensor(b!) history, Tensor(c!) last_hidden, "
    "Tensor? tree_ids, Tensor? turn, Tensor(d!)? results, int idle_slot) -> ()"
)
implement("emit_tokens", "CPU", emit_tokens_plain)
implement("emit_tokens", "CUDA", emit_tokens_cuda)


class Report(NamedTuple):
    """What the host reads of several passes together, each of which writes its part.

    turn: (1,) which pass this is, counted round and round.
    results: (passes, E, 2 + K + 1) per row the count, how many nodes were drafted, then the tokens.
    idle_slot: a slot of rows that nobody waits for: its text stays at one token; -1 is none.
    """

    turn: torch.Tensor | None
    results: torch.Tensor | None
    idle_slot: int


def emit_tokens(
    slots: torch.Tensor,
    roots: torch.Tensor,
    first_rows: torch.Tensor,
    token_ids: torch.Tensor,
    nodes: torch.Tensor,
    counts: torch.Tensor,
    hidden: torch.Tensor,
    num_tokens: torch.Tensor,
    history: torch.Tensor,
    last_hidden: torch.Tensor,
    tree_ids: torch.Tensor | None = None,
    report: Report | None = None,
) -> None:
    """Append what E requests drew to their texts, and keep the hidden state that the last of it was drawn from.

    All K + 1 tokens of a row are written behind its root; those past its count are the next step's to overwrite. Slots
    that occur more than once hold any of their rows' results. Integers are int64.

    Args:
        slots: (E,) rows of the state.
        roots: (E,) position of the token that the first one was drawn from.
        first_rows: (E,) row of `hidden` that is the root's; its tree's nodes follow.
        token_ids, nodes: (E, K + 1), counts: (E,): see `runtime.speculation.acceptance.Accepted`.
        hidden: (R, H) any float dtype, contiguous.
        num_tokens: (S,) written at the slots: root + 1 + count.
        history: (S, longest) written behind the roots.
        last_hidden: (S, H) the dtype of `hidden`, written at the slots.
        tree_ids: (E, N) the trees of the rows, padding -1; None where there are none.
        report: where to write for the host what every row drew; None writes it nowhere.
    """
    turn, results, idle_slot = report or Report(None, None, -1)
    torch.ops.enginewright.emit_tokens.default(
        slots, roots, first_rows, token_ids, nodes, counts, hidden, num_tokens, history, last_hidden, tree_ids, turn,
        results, idle_slot,
    )  # fmt: skip
