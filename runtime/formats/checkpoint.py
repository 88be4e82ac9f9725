"""The unified checkpoint: TensorRT-LLM's config fields and tensor names, one rank, one weights file.

A checkpoint is a folder with `config.json`, `weights.safetensors` and `tokenizer/`. Linear weights are row-major
(out, in). Q, K and V are one fused tensor, in that order. Mind the format's names: `mlp.fc` is the branch that gets
the activation (Hugging Face's gate_proj) and `mlp.gate` the multiplicative one (up_proj).
A tied head is not stored: `share_embedding_table` says so.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec, RopeScaling

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_DIR = "tokenizer"
DTYPES = ("bfloat16", "float16", "float32", "float64")

EMBEDDING = "transformer.vocab_embedding.weight"
FINAL_NORM = "transformer.ln_f.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer: int) -> str:
    """The prefix of every tensor of one layer; `layer` counts from 0."""
    return f"transformer.layers.{layer}."


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of `spec`, by name, in the order of the file."""
    qkv = spec.q_size + 2 * spec.kv_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_layers):
        prefix = layer_prefix(layer)
        shapes[prefix + "input_layernorm.weight"] = (spec.hidden_size,)
        shapes[prefix + "attention.qkv.weight"] = (qkv, spec.hidden_size)
        if spec.qkv_bias:
            shapes[prefix + "attention.qkv.bias"] = (qkv,)
        if spec.qk_norm:
            shapes[prefix + "attention.q_layernorm.weight"] = (spec.head_dim,)
            shapes[prefix + "attention.k_layernorm.weight"] = (spec.head_dim,)
        shapes[prefix + "attention.dense.weight"] = (spec.hidden_size, spec.q_size)
        shapes[prefix + "post_layernorm.weight"] = (spec.hidden_size,)
        shapes[prefix + "mlp.fc.weight"] = (spec.intermediate_size, spec.hidden_size)
        shapes[prefix + "mlp.gate.weight"] = (spec.intermediate_size, spec.hidden_size)
        shapes[prefix + "mlp.proj.weight"] = (spec.hidden_size, spec.intermediate_size)
    shapes[FINAL_NORM] = (spec.hidden_size,)
    if not spec.tied_head:
        shapes[LM_HEAD] = (spec.vocab_size, spec.hidden_size)
    return shapes


@dataclass(frozen=True)
class CheckpointConfig:
    """The contents of `config.json`: the model, and the dtype of its stored weights."""

    spec: ModelSpec
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise EnginewrightError(f"checkpoint dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")

    def to_json(self) -> str:
        """The file's text; equal configs give equal bytes."""
        spec = self.spec
        fields: dict[str, Any] = {
            "architecture": spec.architecture,
            "dtype": self.dtype,
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
            "rotary_scaling": asdict(spec.rope_scaling),
            "sliding_window": spec.sliding_window,
            "attn_bias": spec.qkv_bias,
            "qk_layernorm": spec.qk_norm,
            "share_embedding_table": spec.tied_head,
            "use_parallel_embedding": True,
            "embedding_sharding_dim": 0,
            "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
            # group_size is written out because the format's documents and code disagree on its default.
            "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128},
            "producer": {"name": "enginewright"},
        }
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str) -> "CheckpointConfig":
        """Parse `config.json`; `origin` names the file in errors."""
        try:
            fields = json.loads(text)
            spec = ModelSpec(
                architecture=fields["architecture"],
                vocab_size=fields["vocab_size"],
                hidden_size=fields["hidden_size"],
                num_layers=fields["num_hidden_layers"],
                num_heads=fields["num_attention_heads"],
                num_kv_heads=fields["num_key_value_heads"],
                head_dim=fields["head_size"],
                intermediate_size=fields["intermediate_size"],
                max_position_embeddings=fields["max_position_embeddings"],
                norm_eps=fields["norm_epsilon"],
                rope_theta=fields["rotary_base"],
                rope_scaling=RopeScaling(**fields["rotary_scaling"]),
                sliding_window=fields["sliding_window"],
                qkv_bias=fields["attn_bias"],
                qk_norm=fields["qk_layernorm"],
                tied_head=fields["share_embedding_table"],
            )
            return cls(spec, fields["dtype"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise EnginewrightError(f"{origin}: not a unified checkpoint config ({error!r}); build it again") from error


class Checkpoint:
    """A checkpoint folder opened for reading; tensors are mapped from the file, not copied.

    Raises:
        EnginewrightError: a file is missing or unreadable, or a tensor is missing or misshapen.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = CheckpointConfig.from_json(_read_text(path / CONFIG_FILE), str(path / CONFIG_FILE))
        self.weights_path = path / WEIGHTS_FILE

    @property
    def spec(self) -> ModelSpec:
        return self.config.spec

    def tensors(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Yield (name, tensor) in the order of `tensor_shapes`, each checked against its shape.

        Tensors alias the mapped file: do not write to them.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.weights_path, framework="pt") as file:
                present = set(file.keys())
                for name, shape in tensor_shapes(self.spec).items():
                    if name not in present:
                        raise EnginewrightError(f"{self.weights_path}: tensor {name} is missing; build it again")
                    tensor = file.get_tensor(name)
                    if tuple(tensor.shape) != shape:
                        raise EnginewrightError(
                            f"{self.weights_path}: {name} has shape {tuple(tensor.shape)}, the spec needs {shape}; "
                            "build it again"
                        )
                    yield name, tensor
        except (SafetensorError, OSError) as error:
            raise EnginewrightError(f"{self.weights_path}: unreadable safetensors ({error}); build it again") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EnginewrightError(f"{path}: cannot be read ({error.strerror}); is this a checkpoint folder?") from error
