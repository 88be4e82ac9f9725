"""A unified checkpoint as a Hugging Face folder: the same bits in the same dtype, one tensor in memory at a time.

What a checkpoint does not keep cannot come back: a dtype that conversion rounded, files it had no use for.
"""

import json
import os
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch

from pipelines.quality.hf_config import hf_config
from pipelines.quality.hf_model import hf_tensors
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import TOKENIZER_DIR, Checkpoint, tensor_shapes
from runtime.formats.safetensors_writer import ITEM_BYTES, SafetensorsWriter

INDEX_FILE = "model.safetensors.index.json"
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Shapes = dict[str, tuple[int, ...]]


def export_hf(checkpoint: Checkpoint, folder: Path, max_shard_bytes: int) -> list[Path]:
    """Write `folder`, which must not exist yet; it appears when it is complete. Returns its files.

    Raises:
        EnginewrightError: the folder exists or cannot be written, or transformers has no such model.
    """
    if folder.exists():
        raise EnginewrightError(f"{folder}: exists already; name a new folder, or remove it")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write_weights(checkpoint, partial, max_shard_bytes)
        _write_config(checkpoint, partial)
        for name in COPIED:
            if (checkpoint.path / TOKENIZER_DIR / name).is_file():
                shutil.copyfile(checkpoint.path / TOKENIZER_DIR / name, partial / name)
        partial.rename(folder)
    except OSError as error:
        raise EnginewrightError(
            f"{folder}: cannot be written ({error.strerror}); check permissions and space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.iterdir())


def plan_shards(shapes: Shapes, item_bytes: int, max_shard_bytes: int) -> list[Shapes]:
    """Cut tensors, in their order, into shards of at most `max_shard_bytes`; a larger tensor has one of its own."""
    shards: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        num_bytes = prod(shape) * item_bytes
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += num_bytes
    return shards


def _write_weights(checkpoint: Checkpoint, folder: Path, max_shard_bytes: int) -> None:
    dtype = checkpoint.config.dtype
    shapes = _hf_shapes(checkpoint)
    shards = plan_shards(shapes, ITEM_BYTES[dtype], max_shard_bytes)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    tensors = hf_tensors(checkpoint)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, dtype, tensors)
    if len(shards) > 1:
        total = sum(prod(shape) for shape in shapes.values()) * ITEM_BYTES[dtype]
        placed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        _write_json(
            folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        )


def _hf_shapes(checkpoint: Checkpoint) -> Shapes:
    """transformers' names and shapes, in the order in which `hf_tensors` yields them; reads no weights."""
    meta = _Shapes(checkpoint)
    return {name: tuple(tensor.shape) for name, tensor in hf_tensors(meta)}


class _Shapes(Checkpoint):
    """A checkpoint whose tensors have a shape and no data."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in tensor_shapes(self.spec).items():
            yield name, torch.empty(shape, device="meta")


def _write_shard(path: Path, shapes: Shapes, dtype: str, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    with SafetensorsWriter(path, shapes, dtype, {"format": "pt"}) as writer:
        for _ in shapes:
            name, tensor = next(tensors)
            writer.write(name, tensor)


def _write_config(checkpoint: Checkpoint, folder: Path) -> None:
    generation = json.loads((checkpoint.path / TOKENIZER_DIR / "generation.json").read_text(encoding="utf-8"))
    ends = generation["eos_token_ids"]
    token_ids: dict[str, Any] = {
        "bos_token_id": generation["bos_token_id"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }
    config = hf_config(checkpoint.spec)
    config.architectures = [checkpoint.spec.architecture]
    config.dtype = checkpoint.config.dtype
    for name, value in token_ids.items():
        setattr(config, name, value)
    config.to_json_file(folder / "config.json", use_diff=False)
    _write_json(folder / "generation_config.json", token_ids | {"pad_token_id": generation["pad_token_id"]})


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
