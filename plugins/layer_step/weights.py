"""What the launches of a step read: sizes of a model and its tensors. Knows no checkpoint."""

from typing import NamedTuple

import torch


class LayerSpec(NamedTuple):
    """Sizes of a decoder: see `runtime.spec.ModelSpec`, which has the same names."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    sliding_window: int | None

    @property
    def qkv_size(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of a layer's linears and of the LM head."""
        return {
            "qkv": (self.qkv_size, self.hidden_size),
            "dense": (self.hidden_size, self.num_heads * self.head_dim),
            "gate_up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
            "head": (self.vocab_size, self.hidden_size),
        }


class LayerTensors(NamedTuple):
    """One layer's tensors, row-major (out, in), of one dtype."""

    input_norm: torch.Tensor  # (H,)
    qkv: torch.Tensor  # ((N + 2 N_kv) D, H)
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # (D,)
    k_norm: torch.Tensor | None
    dense: torch.Tensor  # (H, N D)
    post_norm: torch.Tensor  # (H,)
    gate_up: torch.Tensor  # (2 I, H), the activated branch first
    down: torch.Tensor  # (H, I)


class LayerWeights(NamedTuple):
    spec: LayerSpec
    layers: list[LayerTensors]
    embedding: torch.Tensor  # (V, H)
    final_norm: torch.Tensor  # (H,) float32
    head: torch.Tensor  # (V, H); the embedding where the model ties them
    cos: torch.Tensor  # (positions, D): see `plugins.rope_kv_write`
    sin: torch.Tensor
