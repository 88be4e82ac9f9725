"""What goes wrong on a GPU, as one line that a user can act on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from plugins.cuda.errors import KernelError
from runtime.errors import EnginewrightError

GIB = 2**30
_NO_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY")  # from a library, and from the driver


@contextmanager
def gpu_errors(doing: str) -> Iterator[None]:
    """Turn errors of torch and of our kernels about the GPU into one line that names what was being done.

    Raises:
        EnginewrightError: out of memory, a GPU that failed or was lost, a kernel that is missing or was refused.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnginewrightError(_out_of_memory(doing, str(error))) from error
    except torch.AcceleratorError as error:
        raise EnginewrightError(
            f"the GPU failed {doing}: {str(error).splitlines()[0]}; start again, and see dmesg for Xid messages"
        ) from error
    except KernelError as error:
        if any(name in str(error) for name in _NO_MEMORY):
            raise EnginewrightError(_out_of_memory(doing, "")) from error
        raise EnginewrightError(f"the cuda engine failed {doing}: {error}") from error
    except RuntimeError as error:
        if not any(name in str(error) for name in _NO_MEMORY):
            raise
        raise EnginewrightError(_out_of_memory(doing, "")) from error


def _out_of_memory(doing: str, message: str) -> str:
    free, total = torch.cuda.mem_get_info()
    found = re.search(r"Tried to allocate ([\d.]+ \w+)", message)
    wanted = f"{found[1]} more were asked for, and " if found else ""
    return (
        f"the GPU ran out of memory {doing}: {wanted}{free / GIB:.1f} of {total / GIB:.1f} GiB are free; stop what "
        "else runs on it (nvidia-smi), or build with a lower target.cuda.kv_cache_fraction, max_num_tokens or "
        "max_batch_size"
    )
