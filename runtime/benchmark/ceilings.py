"""What this device can do at most, measured: bytes read and products added up per second."""

import time
from collections.abc import Callable

import torch

_READ_BYTES = {"cuda": 2 << 30, "cpu": 512 << 20}
_PRODUCT_SIZE = {"cuda": 8192, "cpu": 1536}


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a sum over more than any cache holds, the most that plain reads reach here: best of 5."""
    num_bytes = _READ_BYTES[device.type]
    data = torch.ones(num_bytes // 4, dtype=torch.int32, device=device).view(torch.float32)
    return num_bytes / _least_seconds(data.sum, device, 5)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square product of random numbers."""
    size = _PRODUCT_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _least_seconds(lambda: left @ right, device, 5)


def _least_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one call, by the device's clock, after a first one."""
    run()
    return min(_seconds(run, device) for _ in range(repeats))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
