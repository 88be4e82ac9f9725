"""The GPU that a row was taken on: what it is, how fast it is clocked, what it uses."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
_LOAD = 800  # additions that read and write 256 MiB; a GPU queues about as many before a launch has to wait


@dataclass(frozen=True)
class Device:
    """Said in every row's first line. Clocks are those under load just before the row, in MHz."""

    name: str
    driver: str
    torch: str
    cuda: str
    sm_clock_mhz: int
    memory_clock_mhz: int
    host: str
    source_digest: str


def describe() -> Device:
    handle = _nvml()
    import pynvml

    _load()
    torch.cuda.synchronize()
    _load()  # without which the clocks would be those of an idle GPU
    return Device(
        name=torch.cuda.get_device_name(),
        driver=str(pynvml.nvmlSystemGetDriverVersion()),
        torch=torch.__version__,
        cuda=str(torch.version.cuda),
        sm_clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        host=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        source_digest=source_digest(),
    )


def source_digest() -> str:
    """Of everything that runs in a row: plugins/ and runtime/."""
    digest = hashlib.sha256()
    for folder in ("plugins", "runtime"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def as_line(device: Device) -> dict[str, Any]:
    return {"kind": "device", **asdict(device)}


def median_seconds(run: Callable[[], object], repeats: int, inner: int = 1) -> float:
    """Seconds of one call on the device, by events; the median of `repeats` groups of `inner` calls."""
    run()
    seconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / inner)
    return sorted(seconds)[len(seconds) // 2]


def _load() -> None:
    """Launch some tenths of a second of work, which has not ended at return."""
    data = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    for _ in range(_LOAD):
        data.add_(1)


def energy_mj() -> int:
    """Millijoules that the GPU has used since its driver was loaded."""
    import pynvml

    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(_nvml()))


def _nvml() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
