"""Continuations of beams on NVIDIA GPUs: checks, the kernel's workspace, and the launch."""

import ctypes
from functools import cache

import torch

from plugins.cuda.run import require_contiguous, require_shape, run_kernel
from plugins.cuda.source import KernelSource
from plugins.draft_select.batched import draft_select_batched

LOGITS = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_THREADS, _MOST_KEPT, _FIXED_BYTES = 256, 64, 16 * 256 * 2 + 2048
MOST_SHARED_BYTES = 96 << 10  # every GPU from sm_80 on has that much for a block
_MOST_ROWS = 1 << 14  # beams of all requests together
_MOST_PLACES = 1 << 24  # of one request: beams times logits


class DraftSelectParams(ctypes.Structure):
    """Mirror of the struct in draft_select.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "beam_scores", "beam_nodes", "vocab_ids", "temperature")),
        *((name, ctypes.c_void_p) for name in ("seed", "sample_index", "position", "token_ids", "beams", "parents")),
        *((name, ctypes.c_void_p) for name in ("scores", "kept", "counters")),
        *((name, ctypes.c_int32) for name in ("num_draft", "count")),
    ]


def source(logits: torch.dtype) -> KernelSource:
    """What is compiled for logits of that dtype."""
    return KernelSource("draft_select", "draft_select/draft_select.cu", (("ELEMENT", LOGITS[logits]),))


def draft_select_cuda(
    logits: torch.Tensor,
    beam_scores: torch.Tensor,
    beam_nodes: torch.Tensor,
    vocab_ids: torch.Tensor,
    temperature: torch.Tensor | None,
    seed: torch.Tensor | None,
    sample_index: torch.Tensor | None,
    position: torch.Tensor | None,
    token_ids: torch.Tensor,
    beams: torch.Tensor,
    parents: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """What the kernel has no room for, and float64, go through torch."""
    requests, width, num_draft = logits.shape
    count = scores.shape[1]
    noise, found = (temperature, seed, sample_index, position), (token_ids, beams, parents, scores)
    shared_bytes = _FIXED_BYTES + max(4 * num_draft, 8 * width * min(count, num_draft))
    fits = count <= _MOST_KEPT and shared_bytes <= MOST_SHARED_BYTES and requests * width <= _MOST_ROWS
    if logits.dtype not in LOGITS or not fits or width * num_draft > _MOST_PLACES:
        draft_select_batched(logits, beam_scores, beam_nodes, vocab_ids, *noise, *found)
        return
    op = "draft_select"
    require_shape(op, (requests, width), torch.float32, beam_scores=beam_scores)
    require_shape(op, (requests, width), torch.int64, beam_nodes=beam_nodes)
    require_shape(op, (num_draft,), torch.int64, vocab_ids=vocab_ids)
    given = {name: value for name, value in zip(("seed", "sample_index", "position"), noise[1:], strict=True)
             if value is not None}  # fmt: skip
    require_shape(op, (requests,), torch.int64, **given)
    if requests == 0 or count == 0:
        return
    inputs = {"logits": logits, "vocab_ids": vocab_ids, **given}
    require_contiguous(op, **inputs)
    beam_scores, beam_nodes = beam_scores.contiguous(), beam_nodes.contiguous()  # slices of what was found before
    kept, counters = _workspace(logits.device)
    params = DraftSelectParams(
        logits.data_ptr(), beam_scores.data_ptr(), beam_nodes.data_ptr(), vocab_ids.data_ptr(),
        *(None if value is None else value.data_ptr() for value in noise), *(value.data_ptr() for value in found),
        kept.data_ptr(), counters.data_ptr(), num_draft, count,
    )  # fmt: skip
    run_kernel(source(logits.dtype), "draft_select_kernel", (width, requests), _THREADS, params, shared_bytes)


@cache
def _workspace(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What the blocks of a launch hand each other; launches on one device use the same, so they are one stream's."""
    kept = torch.empty(_MOST_ROWS * _MOST_KEPT, dtype=torch.int64, device=device)
    return kept, torch.zeros(_MOST_ROWS, dtype=torch.int32, device=device)
