"""Moves of single tokens' keys and values within the cache, in all layers at once."""

import torch

from plugins.kv_compact.cpu import kv_compact_cpu
from plugins.kv_compact.cuda import kv_compact_cuda
from plugins.library import define, implement

define("kv_compact(Tensor(a!) storage, Tensor source_rows, Tensor target_rows) -> ()")
implement("kv_compact", "CPU", kv_compact_cpu)
implement("kv_compact", "CUDA", kv_compact_cuda)


def kv_compact(storage: torch.Tensor, source_rows: torch.Tensor, target_rows: torch.Tensor) -> None:
    """Copy the rows `source_rows` to `target_rows`, all read before any is written.

    After a draft tree was verified, the accepted path's keys lie where its nodes lay; this moves them to where a chain
    would have put them. A pair of equal rows moves nothing, and may be there more than once.

    Args:
        storage: (2 L, num_blocks, N_kv, block_size, D), contiguous, changed in place.
        source_rows, target_rows: (n,) int64, rows of one layer's cache seen as (num_blocks * N_kv * block_size, D).
            Of pairs that move, no two targets may be equal, nor one a row that another pair keeps.
    """
    torch.ops.enginewright.kv_compact.default(storage, source_rows, target_rows)
