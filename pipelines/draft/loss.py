"""The loss of drafted tokens against the target's distributions, with the gradient computed in the same pass.

Logits over the draft vocabulary are by far the largest tensors of the training, so they live for a chunk of rows, and
pass through memory as seldom as can be. With q the head's softmax, m the target's distribution and L the LM head, the
gradient of cross-entropy with respect to what L reads is (q - m) L = q L - m L: no difference of large tensors is
taken, and m L is computed once for all rows that are compared with the same m.
"""

from typing import Any, NamedTuple

import torch

CHUNK_ROWS = 16384


class Targets(NamedTuple):
    """What the target says at U places of the text."""

    choice: torch.Tensor  # (U,) int64, its first choice, counted in the draft vocabulary
    mixed: torch.Tensor  # (U, V_draft), m = hard_share x onehot(choice) + (1 - hard_share) x its softmax
    mean_row: torch.Tensor  # (U, E) float32 or wider, m L


@torch.no_grad()
def targets_of(logits: torch.Tensor, lm_head: torch.Tensor, hard_share: float) -> Targets:
    """Make targets of the target's logits (U, V_draft); `lm_head` (V_draft, E) is the head's.

    With hard_share 0 the gradient is that of KL(target || head); the two differ by the target's own entropy. The
    softmax is over the draft vocabulary: what the target puts elsewhere is left out.
    """
    choice = logits.argmax(-1)
    mixed = torch.softmax(logits, -1).mul_(1 - hard_share)
    mixed.scatter_add_(1, choice.unsqueeze(1), mixed.new_full((len(choice), 1), hard_share))
    return Targets(choice, mixed, _wide_product(mixed, lm_head))


def head_loss(
    read: torch.Tensor, lm_head: torch.Tensor, targets: Targets, places: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of weight x cross-entropy over R drafted tokens, differentiable in `read` and `lm_head`.

    Args:
        read: (R, E), what the LM head reads.
        lm_head: (V_draft, E), in the dtype that logits are computed in.
        places: (R,) int64, which of the targets each is compared with.
        weight: (R,) float32 or wider.

    Returns:
        The sum, and (R,) bool: the head's first choice is the target's.
    """
    total, hits = _HeadLoss.apply(read, lm_head, *targets, places, weight)  # type: ignore[no-untyped-call]
    return total, hits


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        read: torch.Tensor,
        lm_head: torch.Tensor,
        choice: torch.Tensor,
        mixed: torch.Tensor,
        mean_row: torch.Tensor,
        places: torch.Tensor,
        weight: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = torch.empty_like(read)
        head_gradient = -_weighted_outer(read, mixed, places, weight) if ctx.needs_input_grad[1] else None
        hits = torch.empty(len(read), dtype=torch.bool, device=read.device)
        total = weight.new_zeros(())
        for first in range(0, len(read), CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            rows, mean = read[part].to(lm_head.dtype), mean_row[places[part]]
            logits = rows @ lm_head.T
            q = torch.softmax(logits, -1)
            likeliest = q.max(-1)
            hits[part] = likeliest.indices == choice[places[part]]
            log_z = logits.gather(1, likeliest.indices.unsqueeze(1)).squeeze(1) - likeliest.values.to(mean.dtype).log()
            total += (weight[part] * (log_z - (rows * mean).sum(-1))).sum()
            gradient[part] = (_wide_product(q, lm_head) - mean) * weight[part].unsqueeze(1)
            if head_gradient is not None:
                head_gradient += _wide_product(q.T, (rows * weight[part].unsqueeze(1)).to(q.dtype))
        ctx.save_for_backward(gradient, *([] if head_gradient is None else [head_gradient.to(lm_head.dtype)]))
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, grad_hits: torch.Tensor) -> tuple[Any, ...]:
        gradient, *head_gradient = ctx.saved_tensors
        scaled = [grad_total.to(x.dtype) * x for x in (gradient, *head_gradient)]
        return scaled[0], scaled[1] if len(scaled) > 1 else None, None, None, None, None, None


def _weighted_outer(
    read: torch.Tensor, mixed: torch.Tensor, places: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """(V_draft, E): the sum over rows of weight x the outer product of m and what was read."""
    gathered = weight.new_zeros(len(mixed), read.shape[1]).index_add_(0, places, read * weight.unsqueeze(1))
    return _wide_product(mixed.T, gathered.to(mixed.dtype))


def _wide_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product of 16-bit matrices in float32; of others in their own dtype."""
    if left.is_cuda and left.itemsize == 2:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).to(torch.promote_types(left.dtype, torch.float32))
