"""Tree packing on NVIDIA GPUs: checks and the launch."""

import ctypes

import torch

from plugins.cuda.run import require_contiguous, require_shape, run_kernel
from plugins.cuda.source import KernelSource
from plugins.tree_pack.batched import tree_pack_batched

SOURCE = KernelSource("tree_pack", "tree_pack/tree_pack.cu")
MOST_CANDIDATES = 4096  # each is compared with each
_THREADS, _MOST_NODES = 256, 64


class TreePackParams(ctypes.Structure):
    """Mirror of the struct in tree_pack.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("candidate_ids", "candidate_parents", "scores", "root_ids")),
        *((name, ctypes.c_void_p) for name in ("token_ids", "parents", "depths", "ancestors")),
        *((name, ctypes.c_int32) for name in ("candidates", "num_nodes")),
    ]


def tree_pack_cuda(
    candidate_ids: torch.Tensor,
    candidate_parents: torch.Tensor,
    scores: torch.Tensor,
    root_ids: torch.Tensor,
    token_ids: torch.Tensor,
    parents: torch.Tensor,
    depths: torch.Tensor,
    ancestors: torch.Tensor,
) -> None:
    """Scores of another dtype than float32, and more candidates than MOST_CANDIDATES, go through torch."""
    tree = {"token_ids": token_ids, "parents": parents, "depths": depths, "ancestors": ancestors}
    requests, count = candidate_ids.shape
    if scores.dtype != torch.float32 or not 1 <= count <= MOST_CANDIDATES:
        tree_pack_batched(candidate_ids, candidate_parents, scores, root_ids, *tree.values())
        return
    candidates = {"candidate_ids": candidate_ids, "candidate_parents": candidate_parents}
    require_shape("tree_pack", (requests, count), torch.int64, **candidates)
    require_shape("tree_pack", (requests, count), torch.float32, scores=scores)
    require_shape("tree_pack", (requests,), torch.int64, root_ids=root_ids)
    require_shape("tree_pack", (requests, token_ids.shape[1]), torch.int64, **tree)
    require_contiguous("tree_pack", **candidates, scores=scores, root_ids=root_ids, **tree)
    if requests == 0:
        return
    inputs = (*candidates.values(), scores, root_ids, *tree.values())
    params = TreePackParams(*(tensor.data_ptr() for tensor in inputs), count, token_ids.shape[1])
    shared_bytes = 8 * count + 4 * (_MOST_NODES + _THREADS // 32)
    run_kernel(SOURCE, "tree_pack_kernel", requests, _THREADS, params, shared_bytes)
