"""From a packed batch to dense passes: requests with as many new tokens as each other share one."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from plugins.attention.visible import visible_keys
from runtime.backends.slots.session import StepInputs
from runtime.batch import Batch

KEYS_STEP = 64  # masks that may be short end at multiples of this, so that shapes repeat


class Group(NamedTuple):
    """Requests of a batch that share a pass."""

    requests: list[int]  # their places in the batch
    num_rows: int  # S, new tokens of each


def groups(batch: Batch, takes: Callable[[int, int], bool]) -> Iterator[Group]:
    """Split a batch by the number of new tokens, in the order in which each first comes.

    takes: whether a pass may have so many requests with so many rows; what it does not take goes one by one.
    """
    by_rows: dict[int, list[int]] = {}
    for request, num_rows in enumerate(batch.query_starts.diff().tolist()):
        by_rows.setdefault(num_rows, []).append(request)
    for num_rows, requests in by_rows.items():
        if takes(len(requests), num_rows):
            yield Group(requests, num_rows)
        else:
            yield from (Group([request], num_rows) for request in requests)


def step_inputs(
    batch: Batch, group: Group, sliding_window: int | None, num_keys: int, logit_rows: list[int]
) -> StepInputs:
    """The inputs of one pass, in the order of the group.

    Args:
        num_keys: M, that the mask covers.
        logit_rows: which of the pass's rows get logits.
    """
    device = batch.token_ids.device
    chosen = torch.tensor(group.requests, device=device)
    rows = torch.arange(group.num_rows, device=device)
    tokens = batch.query_starts[chosen].unsqueeze(1) + rows
    context_lens = batch.context_lens[chosen]
    starts = torch.arange(len(chosen) + 1, device=device) * group.num_rows
    ancestors = batch.ancestors[chosen] if batch.ancestors is not None else None
    visible = visible_keys(tokens.numel(), num_keys, starts, context_lens, ancestors, sliding_window)
    return StepInputs(
        token_ids=batch.token_ids[tokens],
        position_ids=batch.positions[tokens],
        write_starts=context_lens - group.num_rows,
        attention_mask=visible.view(len(chosen), 1, group.num_rows, num_keys),
        logit_rows=torch.tensor(logit_rows, device=device),
    )


def num_mask_keys(longest_context: int, cache_len: int, slices_cache: bool) -> int:
    """M of a pass whose longest request has `longest_context` tokens in the cache."""
    if not slices_cache:
        return cache_len
    return min(-(-longest_context // KEYS_STEP) * KEYS_STEP, cache_len)
