"""The KV cache's tensors. Who may write where is the block pool's business."""

import torch

from runtime.spec import ModelSpec


class KVCache:
    """Per layer one K and one V tensor (num_blocks, N_kv, block_size, D), contiguous, uninitialised.

    All lie in one storage, (2 L, num_blocks, N_kv, block_size, D), so that moving tokens or copying blocks is one
    operation for all layers. With block_size = the longest sequence this is the linear layout [B, N_kv, Smax, D] of
    one slot per request.
    """

    def __init__(
        self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        shape = (2 * spec.num_layers, num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
        self.block_size = block_size
        self.num_blocks = num_blocks
        # Untouched pages of an uninitialised tensor cost no memory on the CPU.
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self.layers = [(self.storage[2 * layer], self.storage[2 * layer + 1]) for layer in range(spec.num_layers)]

    def rows(self, blocks: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Where tokens lie: rows of one layer's cache seen as (num_blocks * N_kv * block_size, D).

        Args:
            blocks: (..., ) int64, the block that holds each token.
            positions: (..., ) int64, its index among its request's tokens.

        Returns:
            (..., N_kv) int64.
        """
        num_kv_heads = self.storage.shape[2]
        first = blocks * (num_kv_heads * self.block_size) + positions % self.block_size
        heads = torch.arange(num_kv_heads, device=positions.device) * self.block_size
        return first.unsqueeze(-1) + heads

    @property
    def num_bytes(self) -> int:
        return self.storage.nbytes
