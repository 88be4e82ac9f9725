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
        write_hf_files(checkpoint, partial)
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


def named_shards(shapes: Shapes, item_bytes: int, max_shard_bytes: int) -> dict[str, Shapes]:
    """The same shards under transformers' names for their files."""
    shards = plan_shards(shapes, item_bytes, max_shard_bytes)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, 1)}


def write_index(shards: dict[str, Shapes], item_bytes: int, folder: Path) -> None:
    """Say which shard holds which tensor, where there are several."""
    if len(shards) == 1:
        return
    total = sum(prod(shape) for shard in shards.values() for shape in shard.values()) * item_bytes
    placed = {tensor: name for name, shard in shards.items() for tensor in shard}
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))})


def write_hf_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Everything of the folder but its weights: configuration, tokenizer, chat template."""
    _write_config(checkpoint, folder)
    for name in COPIED:
        if (checkpoint.path / TOKENIZER_DIR / name).is_file():
            shutil.copyfile(checkpoint.path / TOKENIZER_DIR / name, folder / name)


def _write_weights(checkpoint: Checkpoint, folder: Path, max_shard_bytes: int) -> None:
    dtype = checkpoint.config.dtype
    shards = named_shards(hf_shapes(checkpoint), ITEM_BYTES[dtype], max_shard_bytes)
    tensors = hf_tensors(checkpoint)
    for name, shard in shards.items():
        _write_shard(folder / name, shard, dtype, tensors)
    write_index(shards, ITEM_BYTES[dtype], folder)


def hf_shapes(checkpoint: Checkpoint) -> Shapes:
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
