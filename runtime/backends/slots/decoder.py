"""A session as a decoder over packed batches: dense passes over slots, and their outputs in the batch's order."""

import torch

from runtime.backends.slots.cache import SlotCache
from runtime.backends.slots.dense import Group, groups, num_mask_keys, step_inputs
from runtime.backends.slots.session import StepOutputs, StepSession
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import DecoderOutput


class SlotDecoder:
    """What `runtime.model.decoder.Decoder` is to a backend, over a session.

    A batch may mix prompts and decoding requests. No pass does: each takes requests with as many new tokens as each
    other, from the first slots of the cache on, or one request wherever it lies.
    """

    def __init__(self, session: StepSession) -> None:
        self.session = session
        self.spec = session.spec
        self.device = session.device

    def empty_hidden(self) -> torch.Tensor:
        """(0, H), of the dtype and device of the hidden states."""
        return torch.empty(0, self.spec.hidden_size, dtype=self.session.output_dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> DecoderOutput:
        assert isinstance(cache, SlotCache)
        wanted = batch.logit_rows.tolist()
        starts = batch.query_starts.tolist()
        parts = []
        order: list[int] = []  # of the batch's logits, as the passes give them
        for group in groups(batch, self.session.takes):
            group = self._place(batch, group, cache)
            rows = {starts[request] + row: at * group.num_rows + row for at, request in enumerate(group.requests)
                    for row in range(group.num_rows)}  # fmt: skip
            here = [index for index, token in enumerate(wanted) if token in rows]
            outputs = self._run(batch, group, cache, [rows[wanted[index]] for index in here])
            parts.append(StepOutputs(*(output[: len(here)] for output in outputs)))
            order += here
        return self._joined(parts, order)

    def _place(self, batch: Batch, group: Group, cache: SlotCache) -> Group:
        """Bring a group's requests together in the cache, and give the group in the order of their slots."""
        blocks = batch.block_tables[:, 0].tolist()
        ends = batch.context_lens.tolist()
        for request in group.requests:
            cache.note_written(blocks[request], ends[request] - group.num_rows, ends[request])
        if len(group.requests) > 1:
            cache.gather([blocks[request] for request in group.requests])
        return group._replace(requests=sorted(group.requests, key=lambda request: cache.slot(blocks[request])))

    def _run(self, batch: Batch, group: Group, cache: SlotCache, logit_rows: list[int]) -> StepOutputs:
        longest = int(batch.context_lens[group.requests].max())
        num_keys = num_mask_keys(longest, self.session.cache_len, self.session.slices_cache)
        inputs = step_inputs(batch, group, self.spec.sliding_window, num_keys, logit_rows or [0])
        first = cache.slot(int(batch.block_tables[group.requests[0], 0]))
        return self.session.run(inputs, cache.parts(first, len(group.requests)))

    def _joined(self, parts: list[StepOutputs], order: list[int]) -> DecoderOutput:
        """The passes' outputs in the batch's order."""
        if order == sorted(order) and len(parts) == 1:
            return DecoderOutput(*parts[0])
        back = torch.tensor(order, dtype=torch.int64, device=self.device).argsort()
        return DecoderOutput(*(torch.cat(outputs)[back] for outputs in zip(*parts, strict=True)))
