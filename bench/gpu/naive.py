"""The naive baseline: a decode step of plain torch operations over a contiguous cache, captured as a CUDA graph."""

import torch

from bench.gpu.models import RandomCheckpoint
from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from runtime.model.rope import rope_table

linear = torch.nn.functional.linear


class NaiveGraph:
    """One greedy decode step of a batch at a fixed context length, of the operations anyone would write first."""

    def __init__(self, checkpoint: RandomCheckpoint, batch_size: int, context_len: int) -> None:
        self.spec = checkpoint.spec
        self._weights = dict(checkpoint.tensors())
        spec, dtype = self.spec, getattr(torch, checkpoint.config.dtype)
        shape = (spec.num_layers, 2, batch_size, spec.num_kv_heads, context_len, spec.head_dim)
        self._cache = torch.zeros(shape, dtype=dtype, device="cuda")
        self._at = context_len - 1
        table = rope_table(spec, context_len, dtype, "cuda")
        self._cos, self._sin = table.cos[self._at], table.sin[self._at]
        self._token_ids = torch.zeros(batch_size, dtype=torch.int64, device="cuda")
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph):
            self._token_ids.copy_(self._step())

    def step(self) -> None:
        """Launch one step; the next reads its tokens."""
        self._graph.replay()

    @torch.inference_mode()
    def _step(self) -> torch.Tensor:
        weights, spec = self._weights, self.spec
        hidden = weights[EMBEDDING][self._token_ids]
        for layer in range(spec.num_layers):
            prefix = layer_prefix(layer)
            hidden = hidden + self._attention(layer, self._norm(hidden, weights[prefix + "input_layernorm.weight"]))
            normed = self._norm(hidden, weights[prefix + "post_layernorm.weight"])
            gate = torch.nn.functional.silu(linear(normed, weights[prefix + "mlp.fc.weight"]))
            up = linear(normed, weights[prefix + "mlp.gate.weight"])
            hidden = hidden + linear(gate * up, weights[prefix + "mlp.proj.weight"])
        head = weights[EMBEDDING if spec.tied_head else LM_HEAD]
        return linear(self._norm(hidden, weights[FINAL_NORM]), head).argmax(dim=-1)

    def _attention(self, layer: int, normed: torch.Tensor) -> torch.Tensor:
        spec, prefix = self.spec, layer_prefix(layer)
        qkv = linear(normed, self._weights[prefix + "attention.qkv.weight"]).unflatten(1, (-1, spec.head_dim))
        q, k, v = qkv.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if spec.qk_norm:
            q = self._norm(q, self._weights[prefix + "attention.q_layernorm.weight"])
            k = self._norm(k, self._weights[prefix + "attention.k_layernorm.weight"])
        keys, values = self._cache[layer]
        keys[:, :, self._at] = self._rotate(k)
        values[:, :, self._at] = v
        attended = torch.nn.functional.scaled_dot_product_attention(
            self._rotate(q).unsqueeze(2), keys, values, enable_gqa=True
        )
        return linear(attended.flatten(1), self._weights[prefix + "attention.dense.weight"])

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._cos + x.roll(self.spec.head_dim // 2, dims=-1) * self._sin

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, self.spec.norm_eps)
