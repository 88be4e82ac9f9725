"""Tiny random models for tests of the runtime: a checkpoint, a byte-level tokenizer, an engine over both."""

import json
from dataclasses import replace
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file

from runtime.engine import Engine
from runtime.formats.checkpoint import Checkpoint, CheckpointConfig, tensor_shapes
from runtime.formats.engine_plan import EnginePlan
from runtime.loading import make_backend
from runtime.spec import ModelSpec
from runtime.text.tokenizer import Tokenizer

SPEC = ModelSpec(
    architecture="LlamaForCausalLM",
    vocab_size=260,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position_embeddings=256,
    tied_head=True,
)
PLAN = EnginePlan(
    dtype="float64",
    linear="torch",
    max_batch_size=4,
    max_seq_len=96,
    max_num_tokens=64,
    block_size=4,
    num_blocks=96,
)
EOS = 256
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}<|assistant|>"


def make_checkpoint(folder: Path, spec: ModelSpec = SPEC, seed: int = 0, dtype: str = "float32") -> Checkpoint:
    """Write random weights whose logits are peaked enough that greedy tokens vary."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensor_shapes(spec).items():
        values = torch.randn(shape, generator=generator)
        is_norm = "layernorm" in name or name == "transformer.ln_f.weight"
        weights[name] = (1 + 0.1 * values if is_norm else values * 0.3).to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "weights.safetensors")
    (folder / "config.json").write_text(CheckpointConfig(spec, dtype).to_json())
    return Checkpoint(folder)


def make_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Tokenizer:
    """Write a tokenizer with one token per byte (ids 0-255) and four special ones, the first of which ends a text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    generation = {"bos_token_id": None, "eos_token_ids": [EOS], "pad_token_id": None}
    (folder / "generation.json").write_text(json.dumps(generation))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return Tokenizer(folder)


def make_engine(
    checkpoint: Checkpoint,
    read_lag: int = 0,
    most_repeats: int = 1,
    *,
    drafter=None,
    policy=None,
    prefix_reuse=True,
    pace=None,
    **limits: int,
) -> Engine:
    """An fp64 engine that ends texts at EOS; `limits` replace fields of PLAN."""
    backend = make_backend(checkpoint, replace(PLAN, **limits), drafter, read_lag, most_repeats=most_repeats)
    return Engine(backend, frozenset([EOS]), policy, prefix_reuse, pace=pace)
