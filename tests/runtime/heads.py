"""Random draft heads for tests, as tensors and as files."""

from pathlib import Path

import torch

from runtime.speculation.redrafter.head_file import HeadConfig, HeadDescription, write_head


def head_config(**changes) -> HeadConfig:
    sizes = {"hidden_size": 32, "exit_dim": 32, "num_blocks": 2, "vocab_size": 260, "draft_vocab_size": 50}
    return HeadConfig(**{**sizes, **changes})


def head_tensors(config: HeadConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (0.2 * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in config.tensor_shapes().items()
    }
    kept = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size]
    return tensors | {"draft_vocab_ids": kept.sort().values.int()}


def write_random_head(folder: Path, config: HeadConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    tensors = head_tensors(config, seed, torch.float32)
    write_head(folder, HeadDescription(config, "tiny", "0" * 64, "1" * 64), tensors)
    return tensors
