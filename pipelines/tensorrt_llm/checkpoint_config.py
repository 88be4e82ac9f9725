"""config.json of a TensorRT-LLM checkpoint, from a model's spec; ReDrafter's keys where it carries a head."""

from typing import Any, NamedTuple

from pipelines.tensorrt_llm.sharding import Ranks
from runtime.spec import ModelSpec, RopeScaling
from runtime.speculation.redrafter.head_file import HeadConfig

SEQ_LENGTH = 8192  # a field of Qwen's configuration that these models do not use
REDRAFTER_CLASSES = {"LlamaForCausalLM": "ReDrafterForLLaMALM", "Qwen2ForCausalLM": "ReDrafterForQWenLM"}


class Beams(NamedTuple):
    """What TensorRT-LLM unrolls into the graph, so that it is frozen when an engine is built."""

    num_beams: int
    draft_len: int  # tokens of a beam past the true one
    greedy: bool

    @property
    def max_draft_tokens(self) -> int:
        return self.num_beams * self.draft_len


def checkpoint_config(spec: ModelSpec, dtype: str, ranks: Ranks) -> dict[str, Any]:
    """The configuration without a draft head."""
    return {
        "architecture": spec.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_size": spec.head_dim,
        "intermediate_size": spec.intermediate_size,
        "hidden_act": "silu",
        "norm_epsilon": spec.norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": spec.max_position_embeddings,
        "rotary_base": spec.rope_theta,
        "rotary_scaling": rotary_scaling(spec.rope_scaling),
        "qk_layernorm": spec.qk_norm,
        "attn_bias": spec.qkv_bias,
        "mlp_bias": False,
        "disable_weight_only_quant_plugin": False,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "mapping": {"world_size": ranks.world_size, "tp_size": ranks.tp_size, "pp_size": ranks.pp_size},
        # group_size is written out because the format's documents and code disagree on its default.
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128, "exclude_modules": None},
        "producer": {"name": "enginewright"},
        **_family(spec),
    }


def with_redrafter(config: dict[str, Any], head: HeadConfig, beams: Beams) -> dict[str, Any]:
    """The configuration of a model that carries a draft head."""
    linears = ["drafter", "drafter.layers", "drafter.lm_head", "drafter.rnn_u", "drafter.rnn_w", "drafter.input_proj"]
    for block in range(head.num_blocks):
        linears += [f"drafter.layers.{block}", f"drafter.layers.{block}.linear"]
    return config | {
        "architecture": REDRAFTER_CLASSES[config["architecture"]],
        "base_model_architecture": config["architecture"],
        "redrafter_num_layers": head.num_blocks,
        "redrafter_hidden_size": head.hidden_size,
        "redrafter_exit_dim": head.exit_dim,
        "redrafter_is_rnn": True,
        "redrafter_num_beams": beams.num_beams,
        "redrafter_draft_len_per_beam": beams.draft_len,
        "redrafter_greedy_search": beams.greedy,
        "quantization": config["quantization"] | {"exclude_modules": linears},
    }


def rotary_scaling(scaling: RopeScaling) -> dict[str, Any] | None:
    """As Hugging Face writes it, which is what TensorRT-LLM reads; None where nothing is scaled."""
    if scaling.kind == "none":
        return None
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    return fields


def _family(spec: ModelSpec) -> dict[str, Any]:
    """Fields that one model class alone reads."""
    if spec.architecture.startswith("Qwen"):
        return {"qwen_type": "qwen3" if spec.qk_norm else "qwen2", "seq_length": SEQ_LENGTH, "use_logn_attn": False}
    return {"residual_mlp": False}
