"""The target as training needs it: whole rows of packed texts at once, on any device."""

import torch

from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, Checkpoint, layer_prefix
from runtime.model.rope import rope_table


class TargetModel:
    """One model's weights in `dtype` on `device`; the residual stream is float32 at least."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: str = "cpu") -> None:
        self.checkpoint, self.spec = checkpoint, checkpoint.spec
        self.dtype, self.device = dtype, torch.device(device)
        self.wide = torch.promote_types(dtype, torch.float32)
        self._weights = {name: tensor.to(self.device, dtype) for name, tensor in checkpoint.tensors()}
        self.embedding = self._weights[EMBEDDING]
        self.lm_head = self._weights[EMBEDDING if self.spec.tied_head else LM_HEAD]
        table = rope_table(self.spec, self.spec.max_position_embeddings, dtype)
        self._cos, self._sin = table.cos.to(self.device), table.sin.to(self.device)

    @torch.inference_mode()
    def encode(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Read whole rows of packed texts, (B, T) with positions that restart at 0: final hidden states (B, T, H)."""
        index = torch.arange(token_ids.shape[1], device=self.device)
        start = index - positions
        mask = self._window(index, index[None, :, None].expand(*token_ids.shape, 1)) & (index >= start.unsqueeze(-1))
        hidden = self.embedding[token_ids].to(self.wide)
        for layer in range(self.spec.num_layers):
            hidden = self._finish(layer, hidden, *self._qkv(layer, hidden, positions), mask)
        return self._norm(hidden, FINAL_NORM)

    def _window(self, columns: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        seen = columns <= position
        return seen & (columns > position - self.spec.sliding_window) if self.spec.sliding_window else seen

    def _qkv(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, N, T, D), keys and values (B, N_kv, T, D), rotated."""
        spec, prefix = self.spec, layer_prefix(layer)
        normed = self._norm(hidden, prefix + "input_layernorm.weight").to(self.dtype)
        qkv = torch.nn.functional.linear(
            normed, self._weights[prefix + "attention.qkv.weight"], self._weights.get(prefix + "attention.qkv.bias")
        )
        query, key, value = (
            part.unflatten(-1, (-1, spec.head_dim)).transpose(1, 2)
            for part in qkv.split([spec.q_size, spec.kv_size, spec.kv_size], dim=-1)
        )
        if spec.qk_norm:
            query = self._norm(query, prefix + "attention.q_layernorm.weight").to(self.dtype)
            key = self._norm(key, prefix + "attention.k_layernorm.weight").to(self.dtype)
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        return _rotate(query, cos, sin), _rotate(key, cos, sin), value

    def _finish(
        self,
        layer: int,
        hidden: torch.Tensor,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Attention over keys and values (B, N_kv, S, D) under mask (B, T, S), then the feed-forward."""
        spec, prefix = self.spec, layer_prefix(layer)
        group, steps = spec.num_heads // spec.num_kv_heads, query.shape[2]
        # A group's heads become query rows of their one key head.
        grouped = query.unflatten(1, (spec.num_kv_heads, group)).flatten(2, 3)
        seen = mask.unsqueeze(1).expand(-1, group, -1, -1).flatten(1, 2).unsqueeze(1)
        context = torch.nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen)
        context = context.unflatten(2, (group, steps)).flatten(1, 2).transpose(1, 2).flatten(2)
        hidden = hidden + context @ self._weights[prefix + "attention.dense.weight"].T
        normed = self._norm(hidden, prefix + "post_layernorm.weight").to(self.dtype)
        gate = torch.nn.functional.silu(normed @ self._weights[prefix + "mlp.fc.weight"].T)
        up = normed @ self._weights[prefix + "mlp.gate.weight"].T
        return hidden + (gate * up) @ self._weights[prefix + "mlp.proj.weight"].T

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.to(self.wide).square().mean(-1, keepdim=True) + self.spec.norm_eps)
        return x * scale * self._weights[name]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See RopeTable for the sign of `sin`."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], dim=-1) * sin
