"""The walk through draft trees on NVIDIA GPUs: checks and the launch."""

import ctypes

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.run import require_contiguous, require_shape, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("accept", "accept/accept.cu")
_MOST_NODES, _WARPS = 64, 4


class AcceptParams(ctypes.Structure):
    """Mirror of the struct in accept.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tree_ids", "parents", "depths", "drawn")),
        *((name, ctypes.c_void_p) for name in ("token_ids", "nodes", "counts")),
        *((name, ctypes.c_int32) for name in ("requests", "num_nodes", "levels", "unused")),
    ]


def accept_cuda(
    tree_ids: torch.Tensor,
    parents: torch.Tensor,
    depths: torch.Tensor,
    drawn: torch.Tensor,
    token_ids: torch.Tensor,
    nodes: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    requests, num_nodes = tree_ids.shape
    levels = token_ids.shape[1]
    if num_nodes > _MOST_NODES:
        raise KernelError(f"accept on CUDA: trees of {num_nodes} nodes; the kernel takes up to {_MOST_NODES}")
    trees = {"tree_ids": tree_ids, "parents": parents, "depths": depths, "drawn": drawn}
    paths = {"token_ids": token_ids, "nodes": nodes}
    require_shape("accept", (requests, num_nodes), torch.int64, **trees)
    require_shape("accept", (requests, levels), torch.int64, **paths)
    require_shape("accept", (requests,), torch.int64, counts=counts)
    require_contiguous("accept", **trees, **paths, counts=counts)
    if requests == 0:
        return
    pointers = (tensor.data_ptr() for tensor in (*trees.values(), *paths.values(), counts))
    params = AcceptParams(*pointers, requests, num_nodes, levels, 0)
    run_kernel(SOURCE, "accept_kernel", -(-requests // _WARPS), 32 * _WARPS, params)
