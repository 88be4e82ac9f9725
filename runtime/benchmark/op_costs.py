"""What one pass of the decoder moves and computes at least, op by op, from the sizes alone."""

from collections.abc import Sequence
from typing import NamedTuple

from runtime.spec import ModelSpec

WIDE = 4  # bytes of an element of the residual stream and of the logits


class Cost(NamedTuple):
    """Bytes read and written once each, and floating-point operations."""

    num_bytes: float
    flop: float

    def seconds(self, bytes_per_s: float, flop_per_s: float) -> float:
        """The least time that a device with these rates takes."""
        return max(self.num_bytes / bytes_per_s, self.flop / flop_per_s)


def op_costs(spec: ModelSpec, element_bytes: int, new_tokens: int, contexts: Sequence[int]) -> dict[str, Cost]:
    """Of a pass in which each request has `new_tokens` new tokens, the last of its `contexts`.

    Weights and cached keys count once however many rows read them. Embedding rows, tables and sampling's filters do not
    count. `rms_norm` is every norm, all but the first with the sum before it; `layer_step` is all but attention and
    `decoder_step` the whole pass.
    """
    rows, heads = new_tokens * len(contexts), len(contexts)
    qkv = spec.q_size + 2 * spec.kv_size
    layer_weights = spec.hidden_size * (qkv + spec.q_size + 3 * spec.intermediate_size)
    head_weights = spec.vocab_size * spec.hidden_size
    weights = spec.num_layers * layer_weights + head_weights
    linear = Cost(weights * element_bytes, 2 * (rows * spec.num_layers * layer_weights + heads * head_weights))
    seen = sum(_keys_seen(context, new_tokens, spec.sliding_window) for context in contexts)
    read = sum(_keys_read(context, new_tokens, spec.sliding_window) for context in contexts)
    keys = Cost(read * spec.kv_bytes_per_token(element_bytes), 4 * seen * spec.q_size * spec.num_layers)
    hidden, layers = rows * spec.hidden_size, spec.num_layers
    return {
        "linear": linear,
        "attention": keys,
        "rope_kv_write": Cost(2 * layers * rows * qkv * element_bytes, 6 * layers * rows * qkv),
        "rms_norm": Cost((1 + 4 * layers) * hidden * (WIDE + element_bytes), (4 + 10 * layers) * hidden),
        "silu_mul": Cost(3 * layers * rows * spec.intermediate_size * element_bytes,
                         5 * layers * rows * spec.intermediate_size),
        "sample": Cost(heads * spec.vocab_size * WIDE, heads * spec.vocab_size),
        "layer_step": linear,
        "decoder_step": Cost(linear.num_bytes + keys.num_bytes, linear.flop + keys.flop),
    }  # fmt: skip


def _keys_seen(context: int, new_tokens: int, window: int | None) -> int:
    """Over all new tokens of one request."""
    first = context - new_tokens
    return sum(min(first + token + 1, window or context) for token in range(new_tokens))


def _keys_read(context: int, new_tokens: int, window: int | None) -> int:
    return context if window is None else min(context, window + new_tokens - 1)
