"""Many sequences that the target reads in lockstep, one token of each at a time, through the engine's own decoder."""

import torch

from pipelines.draft.target import TargetModel
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput

BLOCK_SIZE = 32  # tokens


class Lockstep:
    """B sequences of up to `length` tokens; each keeps to its own blocks of the cache."""

    def __init__(self, target: TargetModel, num_sequences: int, length: int) -> None:
        device, num_blocks = target.device, -(-length // BLOCK_SIZE)
        self._decoder = Decoder(target.checkpoint, target.dtype, "torch", length, str(device))
        self._cache = KVCache(target.spec, num_sequences * num_blocks, BLOCK_SIZE, target.dtype, str(device))
        self._blocks = torch.arange(num_sequences * num_blocks, device=device).view(num_sequences, num_blocks)
        self._bounds = torch.arange(num_sequences + 1, device=device)

    def read(self, token_ids: torch.Tensor, positions: torch.Tensor) -> DecoderOutput:
        """Read one token of each sequence, (B,) at positions (B,): logits (B, V) and final hidden states (B, H).

        Columns past a sequence's position are not seen, so a sequence starts afresh by going back to position 0.
        """
        batch = Batch(
            token_ids=token_ids, positions=positions, cache_positions=positions, query_starts=self._bounds,
            context_lens=positions + 1, block_tables=self._blocks, logit_rows=self._bounds[:-1], max_query_len=1,
        )  # fmt: skip
        return self._decoder.forward(batch, self._cache)
