"""What this machine is: processor, memory, disk and GPUs. Read from the system's files and, for GPUs, the driver.

Imports no torch. What a machine can run is runtime/readiness.py's to say.
"""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

# Instruction sets that PyTorch's CPU kernels choose between.
RELEVANT_FLAGS = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip
# With one of these a bfloat16 product is an instruction; without, each is widened to float32.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int  # 0 where only the driver's files could be asked
    compute_capability: tuple[int, int]  # (0, 0) likewise


@dataclass(frozen=True)
class Machine:
    """One look at this machine."""

    system: str
    arch: str
    cpu: str
    cores: int  # that this process may use
    flags: tuple[str, ...]
    memory_bytes: int  # that this process may use, a container's limit included
    available_bytes: int  # of it, now
    gpus: tuple[Gpu, ...]
    driver: str  # version of the NVIDIA driver, empty without one

    @property
    def has_bf16(self) -> bool:
        return any(flag in self.flags for flag in BF16_FLAGS)


def look() -> Machine:
    """Describe this machine."""
    total, available = memory()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        flags=tuple(flag for flag in RELEVANT_FLAGS if flag in cpu_flags()),
        memory_bytes=total,
        available_bytes=available,
        gpus=find_gpus(),
        driver=driver_version(),
    )


def cpu_model() -> str:
    return first_value("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    return (first_value("flags") or first_value("Features")).split()


def first_value(key: str, path: Path = Path("/proc/cpuinfo")) -> str:
    """The first value of one key; empty where the system has none."""
    lines = read_text(path).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def gpu_names(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The model of each NVIDIA GPU, from the driver's own files."""
    return [first_value("Model", path) for path in sorted(folder.glob("*/information"))]


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The NVIDIA kernel driver's version, such as 580.65.06; empty without one."""
    words = read_text(path).partition("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def find_gpus() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU, by the CUDA driver where cuda-bindings can reach one, else by the driver's files."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return tuple(Gpu(name, 0, (0, 0)) for name in gpu_names())
    try:
        status, *_ = driver.cuInit(0)
    except RuntimeError:  # no libcuda.so
        return ()
    if status != driver.CUresult.CUDA_SUCCESS:
        return tuple(Gpu(name, 0, (0, 0)) for name in gpu_names())
    attribute = driver.CUdevice_attribute
    found = []
    for index in range(driver.cuDeviceGetCount()[1]):
        device = driver.cuDeviceGet(index)[1]
        name = driver.cuDeviceGetName(128, device)[1].split(b"\0")[0].decode()
        major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)[1]
        minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)[1]
        found.append(Gpu(name, int(driver.cuDeviceTotalMem(device)[1]), (int(major), int(minor))))
    return tuple(found)


def memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> tuple[int, int]:
    """(total, available) bytes; a container's limit counts where it is lower. Zeros where the system does not tell."""
    total, available = (_kib(first_value(key, meminfo)) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit, used = (read_text(cgroup / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        # Pages of files count as used, and are given back when they are needed.
        stat = dict(line.split() for line in read_text(cgroup / "memory.stat").splitlines())
        return int(limit), min(available, int(limit) - int(used) + int(stat.get("file", 0)))
    return total, available


def _kib(value: str) -> int:
    return int(value.split()[0]) if value else 0


def free_disk_bytes(path: Path) -> int:
    """Free space where `path` is, or would be made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def read_text(path: Path) -> str:
    """A system file's text; empty where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
