"""Stream a source's weights into the unified checkpoint's file, one tensor in memory at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.convert.families import Part, source_parts
from pipelines.convert.source import WeightSource
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import tensor_shapes
from runtime.formats.safetensors_writer import SafetensorsWriter

if TYPE_CHECKING:
    import torch

    from pipelines.stage import Progress


def write_weights(source: WeightSource, path: Path, dtype: str, progress: "Progress") -> int:
    """Write every tensor of `source` to `path` in `dtype`; return the number of tensors.

    Raises:
        EnginewrightError: a tensor is missing, misshapen, not finite or without a place; the disk is full.
    """
    import torch

    shapes = tensor_shapes(source.spec)
    plan = list(source_parts(source.naming, source.spec, shapes))
    _check_names(source, [part.name for _, parts in plan for part in parts])
    try:
        with SafetensorsWriter(path, shapes, dtype) as writer:
            for done, (name, parts) in enumerate(plan, start=1):
                tensors = [_read_finite(source, part, getattr(torch, dtype)) for part in parts]
                writer.write(name, torch.cat(tensors) if len(tensors) > 1 else tensors[0])
                progress.advance(done, len(plan), name)
    except OSError as error:
        num_bytes = source.spec.num_parameters * getattr(torch, dtype).itemsize
        raise EnginewrightError(
            f"{path}: cannot be written ({error.strerror}); {num_bytes / 1e9:.2f} GB of free space are needed"
        ) from error
    return len(plan)


def _check_names(source: WeightSource, wanted: list[str]) -> None:
    for name in wanted:
        if name not in source.names:
            raise EnginewrightError(
                f"{source.origin}: tensor {name} is missing; the source is incomplete, fetch it again"
            )
    # A tensor that is left out without a reason (a bias, a norm) would give a model that runs and is wrong.
    for name in sorted(source.names - set(wanted) - source.optional):
        raise EnginewrightError(
            f"{source.origin}: tensor {name} has no place in {source.spec.architecture}; "
            "the model is a variant that is not supported"
        )


def _read_finite(source: WeightSource, part: Part, dtype: "torch.dtype") -> "torch.Tensor":
    """Read one tensor in `dtype`; a weight that is none, or that `dtype` cannot hold, names its tensor."""
    import torch

    read = source.read(part)
    tensor = read.to(dtype)
    smallest, largest = tensor.aminmax()  # NaN propagates through both
    if smallest.isfinite() and largest.isfinite():
        return tensor
    if not read.isfinite().all():
        raise EnginewrightError(
            f"{source.origin}: tensor {part.name} holds NaN or infinite values; fetch the source again"
        )
    raise EnginewrightError(
        f"{source.origin}: tensor {part.name} has a weight of {float(read.abs().max()):.6g} but {dtype} ends at "
        f"{torch.finfo(dtype).max:.6g}; write precision=bf16 or precision=fp32"
    )
