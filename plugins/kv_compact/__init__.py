"""Moves of single tokens' keys and values within the cache, in all layers at once."""

import torch

from plugins.kv_compact.cuda import kv_compact_cuda
from plugins.kv_compact.plain import kv_compact_plain
from plugins.library import define, implement

define("kv_compact(Tensor(a!) storage, Tensor block_tables, Tensor roots, Tensor nodes, Tensor counts) -> ()")
implement("kv_compact", "CPU", kv_compact_plain)
implement("kv_compact", "CUDA", kv_compact_cuda)


def kv_compact(
    storage: torch.Tensor, block_tables: torch.Tensor, roots: torch.Tensor, nodes: torch.Tensor, counts: torch.Tensor
) -> None:
    """Move the keys and values of accepted paths to where a chain's would lie; all are read before any is written.

    After a draft tree was verified, node n of it lies at position root + n of its request's blocks. The path's i-th
    node, 1 <= i < count, goes to root + i. The rest of the tree is what the next step overwrites.

    Example: the path 0, 1, 2, 5 behind a root at position 9: the token at 14 goes to 12; 10 and 11 stay.

    Args:
        storage: (2 L, num_blocks, N_kv, block_size, D), contiguous, changed in place.
        block_tables: (E, max_blocks) int64, the blocks of each request; no two share one that is written.
        roots: (E,) int64, positions of the roots.
        nodes: (E, K + 1) int64, ascending up to the count; the first is 0, the root.
        counts: (E,) int64, nodes of the path, the root included.

    Raises:
        KernelError: on CUDA, rows that are no multiple of 16 bytes.
    """
    torch.ops.enginewright.kv_compact.default(storage, block_tables, roots, nodes, counts)
