"""Block copies in vectorised torch."""

import torch


def kv_copy_blocks_cpu(storage: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    storage.index_copy_(1, dst, storage.index_select(1, src))
