"""The model families that can be converted, and what their tensors are called in Hugging Face and in GGUF files.

A family that fits the one decoder (runtime/spec.py) costs a row here and a test against transformers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """One architecture.

    gguf_architecture: `general.architecture` of its GGUF files, "" where another family's name is used there.
    gguf_permuted: its GGUF files hold the Q and K rows in interleaved-rotary order.
    window_default: sliding window that a Hugging Face config without the key means; None for none.
    """

    architecture: str
    gguf_architecture: str = ""
    gguf_permuted: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    window_default: int | None = None


FAMILIES = (
    Family("LlamaForCausalLM", "llama", gguf_permuted=True),
    Family("MistralForCausalLM", window_default=4096),  # its GGUF files say "llama"
    Family("Qwen2ForCausalLM", "qwen2", qkv_bias=True),
    Family("Qwen3ForCausalLM", "qwen3", qk_norm=True),
)


def hf_family(architecture: str, origin: str) -> Family:
    """The family of a Hugging Face architecture name; `origin` names the file in errors."""
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise EnginewrightError(f"{origin}: architecture {architecture!r} is not supported; give a model of {known}")


def gguf_family(architecture: str, origin: str) -> Family:
    """The family of a GGUF `general.architecture`; `origin` names the file in errors."""
    for family in FAMILIES:
        if family.gguf_architecture and family.gguf_architecture == architecture:
            return family
    known = ", ".join(family.gguf_architecture for family in FAMILIES if family.gguf_architecture)
    raise EnginewrightError(f"{origin}: GGUF architecture {architecture!r} is not supported; give a model of {known}")


@dataclass(frozen=True)
class Naming:
    """A source's tensor names. `layer` maps a unified name within a layer to the tensors that are joined into it."""

    embedding: str
    final_norm: str
    lm_head: str
    layer_prefix: str
    layer: dict[str, tuple[str, ...]] = field(default_factory=dict)


HF_NAMING = Naming(
    embedding="model.embed_tokens.weight",
    final_norm="model.norm.weight",
    lm_head="lm_head.weight",
    layer_prefix="model.layers.{}.",
    layer={
        "input_layernorm.weight": ("input_layernorm.weight",),
        "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        "attention.qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        "attention.q_layernorm.weight": ("self_attn.q_norm.weight",),
        "attention.k_layernorm.weight": ("self_attn.k_norm.weight",),
        "attention.dense.weight": ("self_attn.o_proj.weight",),
        "post_layernorm.weight": ("post_attention_layernorm.weight",),
        "mlp.fc.weight": ("mlp.gate_proj.weight",),
        "mlp.gate.weight": ("mlp.up_proj.weight",),
        "mlp.proj.weight": ("mlp.down_proj.weight",),
    },
)

GGUF_NAMING = Naming(
    embedding="token_embd.weight",
    final_norm="output_norm.weight",
    lm_head="output.weight",
    layer_prefix="blk.{}.",
    layer={
        "input_layernorm.weight": ("attn_norm.weight",),
        "attention.qkv.weight": ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
        "attention.qkv.bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
        "attention.q_layernorm.weight": ("attn_q_norm.weight",),
        "attention.k_layernorm.weight": ("attn_k_norm.weight",),
        "attention.dense.weight": ("attn_output.weight",),
        "post_layernorm.weight": ("ffn_norm.weight",),
        "mlp.fc.weight": ("ffn_gate.weight",),
        "mlp.gate.weight": ("ffn_up.weight",),
        "mlp.proj.weight": ("ffn_down.weight",),
    },
)


@dataclass(frozen=True)
class Part:
    """One tensor of the source: its name there and the shape it must have, outermost dimension first."""

    name: str
    shape: tuple[int, ...]


def source_parts(
    naming: Naming, spec: ModelSpec, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """Yield (unified name, the source tensors whose rows are joined into it), in the order of `shapes`."""
    whole = {EMBEDDING: naming.embedding, FINAL_NORM: naming.final_norm, LM_HEAD: naming.lm_head}
    inner_names = {
        layer_prefix(layer) + inner: (naming.layer_prefix.format(layer), names)
        for layer in range(spec.num_layers)
        for inner, names in naming.layer.items()
    }
    for name, shape in shapes.items():
        if name in whole:
            yield name, (Part(whole[name], shape),)
            continue
        prefix, names = inner_names[name]
        rows = (shape[0],) if len(names) == 1 else (spec.q_size, spec.kv_size, spec.kv_size)
        yield name, tuple(Part(prefix + part, (n, *shape[1:])) for part, n in zip(names, rows, strict=True))
