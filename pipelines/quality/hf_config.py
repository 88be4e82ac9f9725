"""transformers' config of a model spec, by architecture."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def hf_config(spec: ModelSpec) -> PreTrainedConfig:
    """transformers' config of `spec`.

    Raises:
        EnginewrightError: the architecture is not in the table, or has no sliding window where the spec wants one.
    """
    model_type = MODEL_TYPES.get(spec.architecture)
    if model_type is None:
        raise EnginewrightError(f"architecture {spec.architecture!r} is not one of {', '.join(MODEL_TYPES)}")
    if spec.sliding_window is not None and model_type == "llama":
        raise EnginewrightError(
            f"LlamaForCausalLM with a sliding window of {spec.sliding_window}: transformers has none"
        )
    window: dict[str, Any] = {}
    if model_type != "llama":
        window = {"sliding_window": spec.sliding_window}
    if model_type.startswith("qwen"):
        window |= {"use_sliding_window": spec.sliding_window is not None, "max_window_layers": 0}
    return AutoConfig.for_model(
        model_type,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_position_embeddings,
        rms_norm_eps=spec.norm_eps,
        rope_parameters=_rope_parameters(spec),
        tie_word_embeddings=spec.tied_head,
        pad_token_id=None,  # a default pad id would zero that row of the embedding, or lie outside a small vocabulary
        bos_token_id=None,
        eos_token_id=None,
        **window,
    )


def _rope_parameters(spec: ModelSpec) -> dict[str, Any]:
    scaling = spec.rope_scaling
    fields: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if scaling.kind != "none":
        fields |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.kind == "llama3":
        fields |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        fields |= {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "attention_factor")}
    return fields
