"""Launch a kernel with one params struct through cuLaunchKernelEx; captured by CUDA graphs like any launch."""

import ctypes
from typing import Any

from plugins.cuda.driver import check, driver
from plugins.cuda.errors import KernelError
from plugins.cuda.library import Kernel

# Shared memory a block may use without being asked for, in bytes.
_DEFAULT_SHARED_BYTES = 48 * 1024
_allowed_shared_bytes: dict[tuple[int, int], int] = {}

Size = int | tuple[int, int] | tuple[int, int, int]


def launch(
    kernel: Kernel,
    grid: Size,
    block: Size,
    shared_bytes: int,
    params: ctypes.Structure,
    stream: int,
    cooperative: bool = False,
    dependent: bool = False,
    cluster: int = 1,
) -> None:
    """Launch on `stream`; no allocation, no waiting.

    Args:
        kernel: from plugins.cuda.library.get_kernel, on the stream's device.
        grid: blocks; x, (x, y) or (x, y, z).
        block: threads of a block, likewise.
        shared_bytes: dynamic shared memory of a block.
        params: copied during the call.
        stream: the stream's handle, such as torch.cuda.current_stream().cuda_stream.
        cooperative: all blocks run at once, so that grid_barrier works.
        dependent: the grid may start before the one before it has ended and waits in grid_dependency_wait
            (programmatic stream serialization; ordinary order on GPUs older than sm_90).
        cluster: blocks, consecutive in x, that see each other's shared memory; more than one needs sm_90.

    Raises:
        KernelError: the driver refused the launch, or an earlier kernel of this process failed.
    """
    cuda = driver()
    if shared_bytes > _DEFAULT_SHARED_BYTES:
        _allow_shared(kernel, shared_bytes)
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = _three(grid)
    config.blockDimX, config.blockDimY, config.blockDimZ = _three(block)
    config.sharedMemBytes = shared_bytes
    config.hStream = stream
    attributes = _attributes(cuda, cooperative, dependent, cluster)
    config.numAttrs = len(attributes)
    config.attrs = attributes
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
    doing = f"launching {kernel.name} (grid {grid}, block {block}, {shared_bytes} bytes of shared memory)"
    check(doing, cuda.cuLaunchKernelEx(config, kernel.function, ctypes.addressof(arguments), 0))


def max_shared_bytes(device: int) -> int:
    """Return how much dynamic shared memory a block may ask for on a device."""
    cuda = driver()
    attribute = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    return int(check("reading the device's shared memory", cuda.cuDeviceGetAttribute(attribute, device)))


def max_cooperative_blocks(kernel: Kernel, block_threads: int, shared_bytes: int) -> int:
    """Return how many blocks of a kernel run at once on its device: the largest grid of a cooperative launch."""
    cuda = driver()
    if shared_bytes > _DEFAULT_SHARED_BYTES:
        _allow_shared(kernel, shared_bytes)
    per_processor = check(
        f"reading the occupancy of {kernel.name}",
        cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(kernel.function, block_threads, shared_bytes),
    )
    attribute = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    processors = check("reading the number of processors", cuda.cuDeviceGetAttribute(attribute, kernel.device))
    return int(per_processor) * int(processors)


def _three(size: Size) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else size
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def _attributes(cuda: Any, cooperative: bool, dependent: bool, cluster: int) -> list[Any]:
    attributes = []
    if cooperative:
        attribute = cuda.CUlaunchAttribute()
        attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
        attributes.append(attribute)
    if dependent:
        attribute = cuda.CUlaunchAttribute()
        attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    if cluster > 1:
        attribute = cuda.CUlaunchAttribute()
        attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attribute.value.clusterDim
        size.x, size.y, size.z = cluster, 1, 1
        attributes.append(attribute)
    return attributes


def _allow_shared(kernel: Kernel, shared_bytes: int) -> None:
    key = (int(kernel.function), kernel.device)
    if shared_bytes <= _allowed_shared_bytes.get(key, _DEFAULT_SHARED_BYTES):
        return
    limit = max_shared_bytes(kernel.device)
    if shared_bytes > limit:
        raise KernelError(f"{kernel.name} asks for {shared_bytes} bytes of shared memory; a block here has {limit}")
    cuda = driver()
    attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    check(
        f"raising the shared memory of {kernel.name}", cuda.cuFuncSetAttribute(kernel.function, attribute, shared_bytes)
    )
    _allowed_shared_bytes[key] = shared_bytes
