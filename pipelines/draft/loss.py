"""The loss of one draft step against the target's distribution, with the gradient computed in the same pass.

Logits over the draft vocabulary are by far the largest tensors of the training; here no two of them outlive a chunk.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

CHUNK_ROWS = 16384


class RowLosses(NamedTuple):
    loss: torch.Tensor  # (R,) float32, cross-entropy against the mixed target, not weighted
    hits: torch.Tensor  # (R,) bool, the head's first choice is the target's
    gradient: torch.Tensor  # (R, V_draft), d(weight x loss) / d logits


def row_losses(
    logits: torch.Tensor, labels: torch.Tensor, label_rows: torch.Tensor, weight: torch.Tensor, hard_share: float
) -> RowLosses:
    """Cross-entropy with m = hard_share x onehot(target's argmax) + (1 - hard_share) x softmax(target's logits).

    With hard_share 0 its gradient is that of KL(target || head); the two differ by the target's own entropy. The
    softmax is over the draft vocabulary: what the target puts elsewhere is left out.

    Args:
        logits: (R, V_draft), the head's.
        labels: (U, V_draft), the target's logits, each row for one or more of R.
        label_rows: (R,) int64, which one.
        weight: (R,).
    """
    target_logits = labels[label_rows]
    log_q = torch.log_softmax(logits.float(), -1)
    p = torch.softmax(target_logits.float(), -1)
    choice = target_logits.argmax(-1, keepdim=True)
    is_choice = torch.arange(logits.shape[-1], device=logits.device) == choice
    mixed = torch.where(is_choice, hard_share + (1 - hard_share) * p, (1 - hard_share) * p)
    loss = -(mixed * log_q).sum(-1)
    gradient = (log_q.exp() - mixed) * weight.unsqueeze(-1)
    return RowLosses(loss, logits.argmax(-1) == choice.squeeze(-1), gradient.to(logits.dtype))


@cache
def _row_losses_for(device_type: str) -> Callable[..., RowLosses]:
    """Fused where there is a compiler for it: unfused, the passes over the logits cost more than the products."""
    if device_type != "cuda":
        return row_losses
    compiled = torch.compile(row_losses)

    def fused(logits: torch.Tensor, labels: torch.Tensor, *rest: Any) -> RowLosses:
        torch._dynamo.mark_dynamic(labels, 0)  # or every batch with another number of them would be compiled anew
        return compiled(logits, labels, *rest)

    return fused


class _HeadLoss(torch.autograd.Function):
    """sum of weight x loss over rows, as a function of what the LM head reads and of the head's rows."""

    @staticmethod
    def forward(
        ctx: Any,
        read: torch.Tensor,
        lm_head: torch.Tensor,
        labels: torch.Tensor,
        label_rows: torch.Tensor,
        weight: torch.Tensor,
        hard_share: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """read (R, E), lm_head (V_draft, E), the rest as in `row_losses`: loss and hits, both weighted."""
        fused = _row_losses_for(read.device.type)
        gradient = torch.empty_like(read)
        head_gradient = torch.zeros_like(lm_head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total, hits = (torch.zeros((), device=read.device) for _ in range(2))
        for rows in torch.arange(len(read), device="cpu").split(CHUNK_ROWS):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            losses = fused(read[part] @ lm_head.T, labels, label_rows[part], weight[part], hard_share)
            gradient[part] = losses.gradient @ lm_head
            if head_gradient is not None:
                head_gradient += (losses.gradient.T @ read[part]).float()
            total = total + (losses.loss * weight[part]).sum()
            hits = hits + (losses.hits * weight[part]).sum()
        ctx.save_for_backward(gradient, *([] if head_gradient is None else [head_gradient.to(lm_head.dtype)]))
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, grad_hits: torch.Tensor) -> tuple[Any, ...]:
        gradient, *head_gradient = ctx.saved_tensors
        scaled = [grad_total.to(x.dtype) * x for x in (gradient, *head_gradient)]
        return scaled[0], scaled[1] if len(scaled) > 1 else None, None, None, None, None


def head_loss(
    read: torch.Tensor,
    lm_head: torch.Tensor,
    labels: torch.Tensor,
    label_rows: torch.Tensor,
    weight: torch.Tensor,
    hard_share: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of `row_losses`, differentiable in `read` and `lm_head`, and that of the hits."""
    total, hits = _HeadLoss.apply(read, lm_head, labels, label_rows, weight, hard_share)  # type: ignore[no-untyped-call]
    return total, hits
