"""What the launchers of ops share: the kernel of a source on torch's current stream, and checks of tensors."""

import ctypes

import torch

from plugins.cuda.errors import KernelError
from plugins.cuda.launch import Size, launch
from plugins.cuda.library import get_kernel
from plugins.cuda.source import KernelSource

ELEMENTS = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def run_kernel(
    source: KernelSource,
    entry: str,
    grid: Size,
    block: Size,
    params: ctypes.Structure,
    shared_bytes: int = 0,
    cooperative: bool = False,
    cluster: int = 1,
) -> None:
    """Launch `entry` of `source` on the current stream; a grid that is not cooperative may start early (see `launch`).

    Raises:
        KernelError: there is no such kernel for this GPU, or the driver refused the launch.
    """
    kernel = get_kernel(source, entry, type(params))
    launch(kernel, grid, block, shared_bytes, params, current_stream(), cooperative, not cooperative, cluster)


def current_stream() -> int:
    """The handle of the stream that torch launches on."""
    return int(torch.cuda.current_stream().cuda_stream)


def processors(device: torch.device) -> int:
    """How many streaming multiprocessors a device has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def require_rows(op: str, **tensors: torch.Tensor) -> None:
    """Check that rows are contiguous and every row starts at a multiple of 16 bytes.

    Raises:
        KernelError: one does not.
    """
    for name, tensor in tensors.items():
        aligned = tensor.data_ptr() % 16 == 0 and tensor.shape[-1] * tensor.itemsize % 16 == 0
        strides = tensor.stride()[:-1]
        if tensor.stride(-1) != 1 or not aligned or any(stride * tensor.itemsize % 16 for stride in strides):
            raise KernelError(
                f"{op} on CUDA: {name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}; "
                "rows must be contiguous, multiples of 16 bytes, and aligned to 16 bytes"
            )


def require_contiguous(op: str, **tensors: torch.Tensor) -> None:
    """Check that tensors are contiguous.

    Raises:
        KernelError: one is not.
    """
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise KernelError(f"{op} on CUDA: {name} has strides {tensor.stride()}; it must be contiguous")


def require_shape(op: str, shape: tuple[int, ...], dtype: torch.dtype, **tensors: torch.Tensor) -> None:
    """Check shape and dtype.

    Raises:
        KernelError: one differs.
    """
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise KernelError(f"{op}: {name} is {tuple(tensor.shape)} {tensor.dtype}; it must be {shape} {dtype}")


def require_integers(op: str, **tensors: torch.Tensor) -> None:
    """Check that tensors are contiguous int64.

    Raises:
        KernelError: one is not.
    """
    for name, tensor in tensors.items():
        require_shape(op, tuple(tensor.shape), torch.int64, **{name: tensor})
    require_contiguous(op, **tensors)
