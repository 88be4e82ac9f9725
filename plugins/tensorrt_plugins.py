"""Our ops as TensorRT plugins that are compiled ahead of time: how a launch is described, and how TensorRT is told.

An engine holds the kernel as PTX and launches it by itself: neither Python nor our code is there when it runs. TensorRT
passes pointers to the inputs, then int32 scalars, then pointers to the outputs; the memory of an output that is an
input's is passed twice. Descriptions need no TensorRT, and imports of it are inside functions.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plugins.cuda.nvrtc import compile_source, require_pinned_nvrtc
from plugins.cuda.source import KernelSource

NAMESPACE = "enginewright"
PTX_ARCH = "compute_80"
# What a block may have without leave from the driver, which nobody asks for on an engine's behalf.
MAX_SHARED_BYTES = 48 * 1024

Size = Any  # int, or a symbolic expression of TensorRT's: + * // work among themselves and with int
Shape = Sequence[Size]

_ELEMENTS = {"BF16": "bfloat16", "HALF": "float16"}


@dataclass(frozen=True)
class PluginLaunch:
    """One launch of one kernel."""

    entry: str
    source: KernelSource
    grid: tuple[Size, Size, Size]
    block: int
    shared_bytes: int
    scalars: tuple[Size, ...]  # int32, in the order of the kernel's arguments


def plugin_source(file: str, element: str, head_dim: int) -> KernelSource:
    """What is compiled; `file` under plugins/, `element` bfloat16 or float16."""
    name = file.rpartition("/")[2].removesuffix(".cu")
    return KernelSource(name, file, (("ELEMENT", element), ("HEAD_DIM", str(head_dim))))


def float_bits(value: float) -> int:
    """The bits of a float32 as an int32: a plugin has no other scalars."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return int(bits)


def ceil_div(size: Size, by: int) -> Size:
    return (size + (by - 1)) // by


def launch_ptx(launch: PluginLaunch) -> bytes:
    """Compile a launch's kernel to PTX, which GPUs from sm_80 on run with a driver of CUDA 13.0 or newer.

    Raises:
        KernelError: NVRTC is missing or another than the pinned one.
    """
    require_pinned_nvrtc()
    return compile_source(launch.source, PTX_ARCH).image.rstrip(b"\0")


def element_of(dtype: Any) -> str:
    """The kernels' name for a TensorRT dtype.

    Raises:
        ValueError: it has no kernels.
    """
    if dtype.name not in _ELEMENTS:
        raise ValueError(f"our plugins' kernels are of {' and '.join(_ELEMENTS)}; this graph is of {dtype.name}")
    return _ELEMENTS[dtype.name]


def as_tensorrt(launch: PluginLaunch) -> tuple[bytes, bytes, Any, Any]:
    """What an `aot_impl` returns: the kernel's name, its PTX, sizes and scalars."""
    import tensorrt.plugin as trtp

    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = launch.grid
    params.block_x = launch.block
    params.shared_mem = launch.shared_bytes
    scalars = trtp.SymIntExprs(len(launch.scalars))
    for index, value in enumerate(launch.scalars):
        scalars[index] = trtp.SymInt32(value)
    return launch.entry.encode(), launch_ptx(launch), params, scalars
