"""The next token from logits: temperature, filters and Gumbel noise, or the argmax.

The noise of a vocabulary entry depends on (seed, sample index, position, token id) alone, so a token is the same
however its request was batched, scheduled, preempted or drafted.
"""

import torch

from plugins.library import define, implement
from plugins.sample.batched import NO_TOKEN as NO_TOKEN
from plugins.sample.batched import sample_batched
from plugins.sample.cpu import sample_cpu
from plugins.sample.cuda import sample_cuda, sample_slots_cuda

define(
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, "
    "Tensor sample_index, Tensor position, Tensor(a!) out) -> ()"
)
define(
    "sample_slots(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, "
    "Tensor sample_index, Tensor slots, Tensor roots, Tensor? depths, Tensor(a!) out) -> ()"
)
implement("sample", "CPU", sample_cpu)


def _sample_on_cuda(logits: torch.Tensor, *rest: torch.Tensor) -> None:
    """A kernel for the logits that engines have; float64 is for tests and comparisons."""
    run = sample_cuda if logits.dtype == torch.float32 else sample_batched
    run(logits, *rest)


def _sample_slots(logits: torch.Tensor, *rest: torch.Tensor) -> None:
    """In torch: each row's part of the state, then `sample`."""
    *state, slots, roots, depths, out = rest
    rows_each = len(logits) // max(len(slots), 1)

    def each(values: torch.Tensor) -> torch.Tensor:
        return values if rows_each == 1 else values.repeat_interleave(rows_each)

    position = each(roots) + 1
    draws = [each(values[slots]) for values in state]
    torch.ops.enginewright.sample.default(logits, *draws, position if depths is None else position + depths, out)


def _sample_slots_on_cuda(logits: torch.Tensor, *rest: torch.Tensor) -> None:
    run = sample_slots_cuda if logits.dtype == torch.float32 else _sample_slots
    run(logits, *rest)


implement("sample", "CUDA", _sample_on_cuda)
implement("sample_slots", "CPU", _sample_slots)
implement("sample_slots", "CUDA", _sample_slots_on_cuda)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    sample_index: torch.Tensor,
    position: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """Write argmax(filtered logits / T + Gumbel noise) of each row to `out` and return it; T = 0 is the plain argmax.

    Filters apply in this order to p = softmax(logits / T): `top_k` keeps the k largest; `top_p` keeps the smallest
    set of largest whose mass, renormalised after top_k, reaches it; `min_p` drops what is below min_p * max(p).
    Ties at a filter's edge go to the lower token id. The argmax of logits plus Gumbel noise is a draw from their
    softmax. Source: Gumbel (1954); Maddison et al., "A* Sampling" (2014), section 2.

    Args:
        logits: (R, V) any float dtype.
        temperature: (R,) float32, >= 0.
        top_k: (R,) int64, 0 keeps all.
        top_p: (R,) float32 in (0, 1], 1 keeps all.
        min_p: (R,) float32 in [0, 1], 0 keeps all.
        seed: (R,) int64, all 64 bits are used.
        sample_index: (R,) int64 below 2^32, which of a request's n samples.
        position: (R,) int64 below 2^32, of the token that is drawn.
        out: (R,) int64. On CUDA, where nothing waits for the device, `NO_TOKEN` stands for a row that holds NaN.

    Raises:
        ValueError: on the CPU, a row of logits holds NaN; there is no token to draw.
    """
    torch.ops.enginewright.sample.default(
        logits, temperature, top_k, top_p, min_p, seed, sample_index, position, out
    )  # fmt: skip
    return out


def sample_slots(
    logits: torch.Tensor,
    state: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    roots: torch.Tensor,
    depths: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Draw as `sample` does, for E requests with R / E rows each whose ways of drawing stand in a table.

    Args:
        logits: (R, V), row after row of the first request, then of the next.
        state: temperature, top_k, top_p, min_p, seed and sample_index, (S,) each.
        slots: (E,) int64, each request's row of `state`.
        roots: (E,) int64, the position whose logits are a request's first row; what it draws stands one behind.
        depths: (R,) int64, how far behind the root's a row's position is; None is 0 everywhere.
        out: (R,) int64.
    """
    torch.ops.enginewright.sample_slots.default(logits, *state, slots, roots, depths, out)
    return out
