"""The decoder of the operations anyone would write first: the opponent that shows what the ops of plugins/ are worth.

Plain torch, an operation for each line of the model's formulas, over the same weights and the same paged cache. On a
GPU nothing in it waits for the host, so it can be captured as a graph. It takes chains alone: no draft tree.
"""

from itertools import pairwise
from typing import NamedTuple

import torch

from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder, DecoderOutput, LayerWeights

functional = torch.nn.functional


class _Keys(NamedTuple):
    """What a pass attends to: the same in every layer."""

    rows: torch.Tensor  # (B, N_kv, S) of a layer's cache seen as (num_blocks * N_kv * block_size, D)
    visible: torch.Tensor  # (T, S), which of its own request's keys a token sees
    is_own: torch.Tensor  # (T, B), whether a request is a token's
    starts: list[int] | None  # of the requests' tokens, where the host knows them
    new_rows: torch.Tensor  # (T, N_kv) where the new tokens' keys go
    cos: torch.Tensor  # (T, 1, D)
    sin: torch.Tensor


class PlainDecoder(Decoder):
    """As `Decoder`, on any device. The cache must hold numbers everywhere: what is masked is multiplied by 0."""

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> DecoderOutput:
        assert batch.ancestors is None, "the plain decoder verifies no trees"
        keys = self._keys(batch, cache)
        hidden = self.embedding[batch.token_ids].to(self.final_norm.dtype)
        for layer, (k_cache, v_cache) in zip(self.layers, cache.layers, strict=True):
            hidden = hidden + self._attention(layer, self._norm(hidden, layer.input_norm), keys, k_cache, v_cache)
            gate, up = layer.gate_up(self._norm(hidden, layer.post_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(functional.silu(gate) * up)
        final = self._norm(hidden[batch.logit_rows], self.final_norm)
        return DecoderOutput(self.head(final), final)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """In x's dtype, then rounded to the weight's."""
        normed = functional.rms_norm(x, x.shape[-1:], weight.to(x.dtype), self.spec.norm_eps)
        return normed.to(weight.dtype)

    def _attention(
        self, layer: LayerWeights, normed: torch.Tensor, keys: _Keys, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        spec = self.spec
        heads = layer.qkv(normed).unflatten(1, (-1, spec.head_dim))
        q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        for layer_cache, new in ((k_cache, self._rotated(k, keys)), (v_cache, v)):
            rows = layer_cache.view(-1, spec.head_dim)
            rows.index_copy_(0, keys.new_rows.flatten(), new.reshape(-1, spec.head_dim))
        past_keys, past_values = (each.view(-1, spec.head_dim)[keys.rows] for each in (k_cache, v_cache))
        attended = self._attended(self._rotated(q, keys), past_keys, past_values, keys)
        return layer.dense(attended.flatten(1))

    def _attended(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: _Keys) -> torch.Tensor:
        """(T, N, D) queries over (B, N_kv, S, D) keys -> (T, N, D)."""
        if len(k) == len(q):  # a request each
            return _sdpa(q.unsqueeze(2), k, v, keys.visible[:, None, None]).squeeze(2)
        queries = q.transpose(0, 1).unsqueeze(0)
        if keys.starts is not None:
            parts = [
                _sdpa(queries[:, :, start:end], k[[request]], v[[request]], keys.visible[start:end])
                for request, (start, end) in enumerate(pairwise(keys.starts))
            ]
            return torch.cat(parts, dim=2).squeeze(0).transpose(0, 1)
        k, v = (each.transpose(0, 1).flatten(1, 2).unsqueeze(0) for each in (k, v))  # all requests' as one text
        visible = (keys.is_own.unsqueeze(2) & keys.visible.unsqueeze(1)).flatten(1)
        return _sdpa(queries, k, v, visible).squeeze(0).transpose(0, 1)

    def _rotated(self, x: torch.Tensor, keys: _Keys) -> torch.Tensor:
        return x * keys.cos + x.roll(self.spec.head_dim // 2, dims=-1) * keys.sin

    def _keys(self, batch: Batch, cache: KVCache) -> _Keys:
        """Every token sees its own request's keys up to itself, or as many of them as the window holds."""
        num_requests, num_tokens = len(batch.context_lens), len(batch.token_ids)
        positions, window = batch.positions.unsqueeze(1), self.spec.sliding_window
        requests = torch.arange(num_requests, device=positions.device)
        owners = torch.repeat_interleave(requests, batch.query_starts.diff(), output_size=num_tokens)
        at = torch.arange(batch.block_tables.shape[1] * cache.block_size, device=positions.device)
        seen = at <= positions  # (T, S)
        if window is not None:
            seen = seen & (at > positions - window)
        rows = cache.rows(batch.block_tables.repeat_interleave(cache.block_size, dim=1), at).transpose(1, 2)
        return _Keys(
            rows[owners] if num_tokens == num_requests else rows, seen, owners.unsqueeze(1) == requests,
            None if rows.is_cuda else batch.query_starts.tolist(),
            cache.rows(batch.token_blocks(cache.block_size), batch.cache_positions),
            self.rope.cos[batch.positions].unsqueeze(1), self.rope.sin[batch.positions].unsqueeze(1),
        )  # fmt: skip


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
