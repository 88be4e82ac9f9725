"""Engines and baselines over random weights that are made on the device."""

from collections.abc import Iterator

import torch

from runtime.formats.checkpoint import CheckpointConfig, tensor_shapes
from runtime.spec import ModelSpec


class RandomCheckpoint:
    """Weights of a spec, drawn on the GPU: as `runtime.formats.checkpoint.Checkpoint`, without files.

    Scaled as trained weights are, so that activations neither vanish nor overflow.
    """

    def __init__(self, spec: ModelSpec, dtype: str = "bfloat16", seed: int = 0) -> None:
        self.config = CheckpointConfig(spec, dtype)
        self.spec = spec
        self._seed = seed

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        generator = torch.Generator("cuda").manual_seed(self._seed)
        dtype = getattr(torch, self.config.dtype)
        for name, shape in tensor_shapes(self.spec).items():
            if len(shape) == 1:
                yield name, torch.ones(shape, dtype=dtype, device="cuda")
            else:
                values = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
                yield name, values.mul_(shape[1] ** -0.5).to(dtype)
