"""What a decoder-only model is: its sizes and its variations, independent of weights, precision and target."""

from dataclasses import dataclass, field
from typing import Literal

from runtime.errors import EnginewrightError

RopeKind = Literal["none", "linear", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context length the model was pretrained on.

    Fields that a kind does not use keep their defaults. Formulas: runtime/model/rope.py.
    """

    kind: RopeKind = "none"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, gated SiLU feed-forward.

    Raises:
        EnginewrightError: sizes that do not fit each other.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    sliding_window: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "intermediate_size", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise EnginewrightError(f"model spec: {name} is {value!r}; it must be a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise EnginewrightError(
                f"model spec: {self.num_heads} attention heads do not divide into {self.num_kv_heads} "
                "key/value heads; num_heads must be a multiple of num_kv_heads"
            )
        if self.head_dim % 2:
            raise EnginewrightError(f"model spec: head_dim is {self.head_dim}; rotary positions need an even number")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together (the values' width is the same)."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Stored parameters; a tied head is counted once."""
        attention = self.hidden_size * (self.q_size + 2 * self.kv_size) + self.q_size * self.hidden_size
        extras = (self.q_size + 2 * self.kv_size if self.qkv_bias else 0) + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + extras + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_head else 2)
        return embeddings + self.num_layers * layer + self.hidden_size

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Bytes that one token occupies in the KV cache, over all layers."""
        return 2 * self.num_layers * self.kv_size * bytes_per_element
