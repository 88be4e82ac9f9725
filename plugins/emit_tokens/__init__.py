"""What a step leaves: the tokens that requests got, in their texts and on their way to the host."""

import torch

from plugins.emit_tokens.cuda import emit_tokens_cuda
from plugins.emit_tokens.plain import emit_tokens_plain
from plugins.library import define, implement

define(
    "emit_tokens(Tensor slots, Tensor roots, Tensor first_rows, Tensor token_ids, Tensor nodes, Tensor counts, "
    "Tensor hidden, Tensor(a!) num_tokens, Tensor(b!) history, Tensor(c!) last_hidden) -> ()"
)
implement("emit_tokens", "CPU", emit_tokens_plain)
implement("emit_tokens", "CUDA", emit_tokens_cuda)


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
    """
    torch.ops.enginewright.emit_tokens.default(
        slots, roots, first_rows, token_ids, nodes, counts, hidden, num_tokens, history, last_hidden
    )
