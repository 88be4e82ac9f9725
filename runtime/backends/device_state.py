"""What a running request keeps on the device between steps: its last token and how its tokens are drawn."""

from itertools import accumulate

import torch

from plugins.sample import sample
from runtime.batch import Batch, PlanRow
from runtime.sampling import SamplingParams


class DeviceState:
    """One row per request slot; rows of slots in use are valid, others hold what their last request left."""

    def __init__(self, num_slots: int) -> None:
        self.last_token = torch.zeros(num_slots, dtype=torch.int64)
        self.temperature = torch.zeros(num_slots, dtype=torch.float32)
        self.top_k = torch.zeros(num_slots, dtype=torch.int64)
        self.top_p = torch.ones(num_slots, dtype=torch.float32)
        self.min_p = torch.zeros(num_slots, dtype=torch.float32)
        self.seed = torch.zeros(num_slots, dtype=torch.int64)
        self.sample_index = torch.zeros(num_slots, dtype=torch.int64)

    def admit(self, slot: int, params: SamplingParams, seed: int, sample_index: int) -> None:
        """Give `slot` to a request that draws tokens by `params`."""
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.seed[slot] = seed
        self.sample_index[slot] = sample_index

    def batch(self, rows: list[PlanRow]) -> Batch:
        """Pack the rows' new tokens; tokens that the host does not know yet are taken from `last_token`."""
        token_ids = [token for row in rows for token in row.token_ids or [0]]
        starts = [0, *accumulate(row.num_tokens for row in rows)]
        max_blocks = max(len(row.blocks) for row in rows)
        positions = torch.tensor([row.start + i for row in rows for i in range(row.num_tokens)])
        batch = Batch(
            token_ids=torch.tensor(token_ids),
            positions=positions,
            cache_positions=positions,
            query_starts=torch.tensor(starts),
            context_lens=torch.tensor([row.start + row.num_tokens for row in rows]),
            block_tables=torch.tensor([row.blocks + [0] * (max_blocks - len(row.blocks)) for row in rows]),
            logit_rows=torch.tensor([end - 1 for row, end in zip(rows, starts[1:], strict=True) if row.emits],
                                    dtype=torch.int64),
        )  # fmt: skip
        unknown = [index for index, row in enumerate(rows) if row.token_ids is None]
        if unknown:
            slots = torch.tensor([rows[index].slot for index in unknown])
            batch.token_ids[batch.query_starts[unknown]] = self.last_token[slots]
        return batch

    def draw(self, logits: torch.Tensor, rows: list[PlanRow]) -> torch.Tensor:
        """Draw one token per row that emits: logits (R, V) -> (R,) int64; remember each in its slot."""
        emitting = [row for row in rows if row.emits]
        slots = torch.tensor([row.slot for row in emitting], dtype=torch.int64)
        positions = torch.tensor([row.start + row.num_tokens for row in emitting], dtype=torch.int64)
        tokens = sample(
            logits, self.temperature[slots], self.top_k[slots], self.top_p[slots], self.min_p[slots],
            self.seed[slots], self.sample_index[slots], positions, torch.empty_like(slots),
        )  # fmt: skip
        self.last_token[slots] = tokens
        return tokens
