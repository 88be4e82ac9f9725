"""A GGUF file as a source of weights: metadata keys turned into a model spec, the rotary row order undone."""

from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.convert.families import GGUF_NAMING, Family, Part, gguf_family
from pipelines.convert.gguf_file import GgufFile
from pipelines.convert.rope import llama3_from_factors, yarn_attention_factor
from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec, RopeScaling

if TYPE_CHECKING:
    import torch

ROPE_FACTORS = "rope_freqs.weight"


class GgufSource:
    """See pipelines/convert/source.py. Tensors come dequantized, in float32."""

    naming = GGUF_NAMING
    optional = frozenset({ROPE_FACTORS})

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._family = gguf_family(file.require("general.architecture", str), str(file.path))
        self.spec = read_spec(file, self._family)
        self.names = frozenset(file.tensors)
        self.origin = str(file.path)

    def read(self, part: Part) -> "torch.Tensor":
        """Dequantize one tensor; a permuted family's Q and K rows come back in Hugging Face's order."""
        import torch

        shape = self._file.tensors[part.name].shape
        if shape != part.shape:
            raise EnginewrightError(
                f"{self.origin}: tensor {part.name} has shape {shape} but the metadata asks for {part.shape}; "
                "convert the model to GGUF again"
            )
        values = self._file.read(part.name)
        # torch warns of arrays that it must not write to, such as views of the file.
        tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
        num_heads = self._permuted_heads(part.name)
        return unpermute(tensor, num_heads) if num_heads else tensor

    def _permuted_heads(self, name: str) -> int:
        """How many heads' rows of this tensor are interleaved; 0 for none."""
        if self._family.gguf_permuted and ".attn_q." in name:
            return self.spec.num_heads
        return self.spec.num_kv_heads if self._family.gguf_permuted and ".attn_k." in name else 0


def unpermute(tensor: "torch.Tensor", num_heads: int) -> "torch.Tensor":
    """Put the rows of each head back into halves: GGUF's 0 D/2 1 D/2+1 ... becomes 0 1 ... D/2 D/2+1 ...

    tensor: (N * D, ...), rows of N heads; returns a copy of that shape.

    With one head of D = 4, the rows [0, 2, 1, 3] of the file become [0, 1, 2, 3].
    """
    halves: torch.Tensor = tensor.unflatten(0, (num_heads, -1, 2)).transpose(1, 2)
    return halves.reshape(tensor.shape)


def read_spec(file: GgufFile, family: Family) -> ModelSpec:
    """The model that the metadata describes; whether the head is tied, and the vocabulary, come from the tensors.

    Raises:
        EnginewrightError: a key is missing or says something that this version cannot represent.
    """
    prefix = family.gguf_architecture
    if (parts := file.get("split.count", int, 1)) > 1:
        raise EnginewrightError(
            f"{file.path}: is one of {parts} parts of a model; join them with llama.cpp's llama-gguf-split --merge"
        )
    num_heads = file.require(f"{prefix}.attention.head_count", int)
    hidden_size = file.require(f"{prefix}.embedding_length", int)
    window = file.get(f"{prefix}.attention.sliding_window", int)
    embedding = file.tensors.get(GGUF_NAMING.embedding)
    if embedding is None:
        raise EnginewrightError(f"{file.path}: tensor {GGUF_NAMING.embedding} is missing; fetch the file again")
    spec = ModelSpec(
        # GGUF calls Mistral "llama" too; a window tells them apart.
        architecture="MistralForCausalLM" if prefix == "llama" and window else family.architecture,
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        num_layers=file.require(f"{prefix}.block_count", int),
        num_heads=num_heads,
        num_kv_heads=file.get(f"{prefix}.attention.head_count_kv", int, num_heads),
        head_dim=file.get(f"{prefix}.attention.key_length", int, hidden_size // max(num_heads, 1)),
        intermediate_size=file.require(f"{prefix}.feed_forward_length", int),
        max_position_embeddings=file.require(f"{prefix}.context_length", int),
        norm_eps=file.require(f"{prefix}.attention.layer_norm_rms_epsilon", float),
        rope_theta=_rope_theta(file, prefix),
        sliding_window=window or None,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_head=GGUF_NAMING.lm_head not in file.tensors,
    )
    rotated = file.get(f"{prefix}.rope.dimension_count", int, spec.head_dim)
    if rotated != spec.head_dim:
        raise EnginewrightError(
            f"{file.path}: {prefix}.rope.dimension_count is {rotated} but heads have {spec.head_dim} dimensions; "
            "only whole heads can rotate"
        )
    return replace(spec, rope_scaling=_rope_scaling(file, prefix, spec))


def _rope_theta(file: GgufFile, prefix: str) -> float:
    """Files of the first Llamas do not say it; of other families it was never the default."""
    key = f"{prefix}.rope.freq_base"
    return float(file.get(key, float, 10_000.0) if prefix == "llama" else file.require(key, float))


def _rope_scaling(file: GgufFile, prefix: str, spec: ModelSpec) -> RopeScaling:
    if ROPE_FACTORS in file.tensors:
        return llama3_from_factors(file.read(ROPE_FACTORS), spec.rope_theta, spec.head_dim, str(file.path))
    scaling = f"{prefix}.rope.scaling"
    kind = file.get(f"{scaling}.type", str, "none")
    if kind == "none":
        return RopeScaling()
    if kind not in ("linear", "yarn"):
        raise EnginewrightError(f"{file.path}: {scaling}.type is {kind!r}; none, linear and yarn are supported")
    factor = file.require(f"{scaling}.factor", float)
    if kind == "linear":
        return RopeScaling("linear", factor=factor)
    original = file.require(f"{scaling}.original_context_length", int)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=file.get(f"{scaling}.yarn_beta_fast", float, 32.0),
        beta_slow=file.get(f"{scaling}.yarn_beta_slow", float, 1.0),
        attention_factor=yarn_attention_factor(factor) * file.get(f"{scaling}.attn_factor", float, 1.0),
    )
