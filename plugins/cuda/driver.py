"""The CUDA driver through cuda-python: every status is checked, and a failure says what was being done."""

from functools import cache
from typing import Any

from plugins.cuda.archs import MINIMUM_DRIVER
from plugins.cuda.errors import KernelError

MINIMUM_CUDA = 13000
_REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "lower the batch, the context or kv_cache_fraction",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "rebuild the engine for this GPU's architecture",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": f"update the driver to {MINIMUM_DRIVER} or newer",
    "CUDA_ERROR_INVALID_IMAGE": "the kernel image is damaged: rebuild the engine",
    "CUDA_ERROR_INSUFFICIENT_DRIVER": f"update the driver to {MINIMUM_DRIVER} or newer",
    "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE": "the grid has more blocks than the GPU runs at once",
    "CUDA_ERROR_NO_DEVICE": "no NVIDIA GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel accessed memory out of bounds; the process must be restarted",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory failed; see nvidia-smi -q",
    "CUDA_ERROR_DEVICE_LOST": "the GPU was lost; restart the process, see dmesg for Xid messages",
}


@cache
def driver() -> Any:
    """Return the bindings' driver module, initialised.

    Raises:
        KernelError: cuda-python or the driver is missing, or the driver is older than CUDA 13.0.
    """
    try:
        from cuda.bindings import driver as bindings
    except ImportError as error:
        raise KernelError(f"cuda-python is not installed ({error}); pip install 'cuda-python>=13.0'") from error
    try:
        (status,) = bindings.cuInit(0)
    except Exception as error:  # the loader has its own exception types
        raise KernelError("there is no NVIDIA driver here (libcuda.so.1 is not found)") from error
    if int(status) != 0:
        raise KernelError(f"the CUDA driver does not start: {_describe(bindings, status)}")
    status, version = bindings.cuDriverGetVersion()
    if int(status) == 0 and version < MINIMUM_CUDA:
        found = f"{version // 1000}.{version % 1000 // 10}"
        raise KernelError(f"the driver is of CUDA {found}; kernels need CUDA 13.0: update to {MINIMUM_DRIVER} or newer")
    return bindings


def check(doing: str, result: tuple[Any, ...]) -> Any:
    """Return what a driver call gave beside its status: nothing, one value or a tuple.

    Raises:
        KernelError: the status is an error; `doing` begins the message.
    """
    status, *values = result
    if int(status) != 0:
        raise KernelError(f"{doing}: {_describe(driver(), status)}")
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def _describe(bindings: Any, status: Any) -> str:
    text = bindings.cuGetErrorString(status)[1]
    remedy = _REMEDIES.get(status.name)
    return f"{text.decode() if text else status.name} ({status.name})" + (f"; {remedy}" if remedy else "")
