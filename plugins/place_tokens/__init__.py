"""The tokens of a step: which they are and where they go, from what the host planned and what the device drew."""

import torch

from plugins.library import define, implement
from plugins.place_tokens.cuda import place_tokens_cuda
from plugins.place_tokens.plain import place_tokens_plain

define(
    "place_tokens(Tensor slots, Tensor query_starts, Tensor starts, Tensor is_drawn, Tensor known_ids, "
    "Tensor num_tokens, Tensor history, Tensor? tree_ids, Tensor? tree_depths, Tensor(f!)? turn, Tensor(a!) token_ids, "
    "Tensor(b!) positions, Tensor(c!) cache_positions, Tensor(d!) context_lens, Tensor(e!) roots) -> ()"
)
implement("place_tokens", "CPU", place_tokens_plain)
implement("place_tokens", "CUDA", place_tokens_cuda)


def place_tokens(
    slots: torch.Tensor,
    query_starts: torch.Tensor,
    starts: torch.Tensor,
    is_drawn: torch.Tensor,
    known_ids: torch.Tensor,
    num_tokens: torch.Tensor,
    history: torch.Tensor,
    tree_ids: torch.Tensor | None = None,
    tree_depths: torch.Tensor | None = None,
    turn: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay out the T new tokens of B requests. All tensors are int64 on one device.

    A request whose tokens were planned has them in `known_ids`, from position starts[b] on. One that goes on from the
    token drawn last has that at position num_tokens[slot] - 1, alone or as the root of a draft tree.

    Args:
        slots: (B,) rows of the state below.
        query_starts: (B + 1,) see `runtime.batch.Batch`; a request may have no new token.
        starts: (B,) read where is_drawn is 0.
        is_drawn: (B,) 1 or 0.
        known_ids: (T,) read where is_drawn is 0.
        num_tokens: (S,) tokens of each slot's text.
        history: (S, longest) the texts.
        tree_ids, tree_depths: (B, N) see `runtime.speculation.tree.DraftTree`, padding -1; read where is_drawn is 1.
        turn: (1,) which pass this is, counted up by one; None counts nothing.

    Returns:
        token_ids: (T,), 0 for padding of trees.
        positions: (T,) in the text: a node's is its root's plus its depth.
        cache_positions: (T,) in the request's blocks: nodes lie in their own order.
        context_lens: (B,) tokens in the cache once these are.
        roots: (B,) position of the token that the next one is drawn from; a tree's root.
    """
    per_token = [torch.empty_like(known_ids) for _ in range(3)]
    per_request = [torch.empty_like(slots) for _ in range(2)]
    torch.ops.enginewright.place_tokens.default(
        slots, query_starts, starts, is_drawn, known_ids, num_tokens, history, tree_ids, tree_depths, turn, *per_token,
        *per_request,
    )  # fmt: skip
    token_ids, positions, cache_positions = per_token
    context_lens, roots = per_request
    return token_ids, positions, cache_positions, context_lens, roots
