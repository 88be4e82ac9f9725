"""A draft head's tensors as TensorRT-LLM wants them: in the model's dtype, whole, under its names."""

from pathlib import Path

import torch

from runtime.formats.safetensors_writer import SafetensorsWriter
from runtime.speculation.redrafter.head_file import PREFIX, VOCAB_IDS, read_head

DRAFTER_FILE = "drafter.safetensors"


def write_drafter(draft_dir: Path, dtype: str, path: Path) -> None:
    """Write every tensor of the head in `draft_dir` but its draft vocabulary, which TensorRT-LLM has no place for.

    Raises:
        EnginewrightError: the head is damaged.
    """
    _, tensors = read_head(draft_dir)
    kept = {name: tensor for name, tensor in sorted(tensors.items()) if name != VOCAB_IDS}
    assert all(name.startswith(PREFIX) for name in kept)
    with SafetensorsWriter(path, {name: tuple(tensor.shape) for name, tensor in kept.items()}, dtype) as writer:
        for name, tensor in kept.items():
            writer.write(name, tensor.to(getattr(torch, dtype)))
