"""The bytes of a model in a build: weights, KV cache, what a decode step reads."""

from dataclasses import dataclass

from pipelines.config import BuildConfig
from pipelines.stages.compile import USUAL_TOKENS_PER_REQUEST
from runtime.readiness import ELEMENT_BYTES, weight_bytes
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class ModelSizes:
    """All in bytes but max_seq_len, in tokens."""

    parameters: int
    weights: int  # as stored, in the engine's dtype
    read_per_step: int  # of the weights by one decode step: all but an embedding that is no head as well
    kv_per_token: int
    kv_cache: int  # once every block is written
    max_seq_len: int
    largest_tensor: int  # in float32
    packed: int  # the weights, as the CPU engine's linear layers hold them


def model_sizes(spec: ModelSpec, config: BuildConfig) -> ModelSizes:
    element = ELEMENT_BYTES[config.precision.dtype]
    embedding = spec.vocab_size * spec.hidden_size
    cpu = config.target.cpu
    held = weight_bytes(config.precision.dtype, cpu.linear) if cpu else element
    max_seq_len = (cpu.max_seq_len if cpu else 0) or spec.max_position_embeddings
    batch = cpu.max_batch_size if cpu else 1
    tokens = (cpu.kv_cache_tokens if cpu else 0) or max(max_seq_len, batch * USUAL_TOKENS_PER_REQUEST)
    return ModelSizes(
        parameters=spec.num_parameters,
        weights=spec.num_parameters * element,
        read_per_step=(spec.num_parameters - (0 if spec.tied_head else embedding)) * element,
        kv_per_token=spec.kv_bytes_per_token(element),
        kv_cache=tokens * spec.kv_bytes_per_token(element),
        max_seq_len=max_seq_len,
        largest_tensor=4 * max(embedding, spec.hidden_size * spec.intermediate_size),
        packed=spec.num_parameters * held,
    )
