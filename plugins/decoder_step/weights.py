"""What a step is compiled for and reads: the sizes of a model, and its tensors. Knows no checkpoint."""

from typing import NamedTuple

import torch


class StepSpec(NamedTuple):
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


class StepLayer(NamedTuple):
    """One layer's tensors, row-major (out, in), of one dtype."""

    input_norm: torch.Tensor  # (H,)
    qkv: torch.Tensor  # ((N + 2 N_kv) D, H)
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # (D,)
    k_norm: torch.Tensor | None  # (D,)
    dense: torch.Tensor  # (H, N D)
    post_norm: torch.Tensor  # (H,)
    fc: torch.Tensor  # (I, H), the branch that is activated
    gate: torch.Tensor  # (I, H)
    down: torch.Tensor  # (H, I)


class StepWeights(NamedTuple):
    spec: StepSpec
    layers: list[StepLayer]
    embedding: torch.Tensor  # (V, H)
    final_norm: torch.Tensor  # (H,)
    head: torch.Tensor  # (V, H); the embedding where the model ties them
    cos: torch.Tensor  # (positions, D): see `plugins.rope_kv_write`
    sin: torch.Tensor
