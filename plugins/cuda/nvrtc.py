"""Compile a kernel source with NVRTC, through cuda-python; needs no driver and no GPU."""

import importlib.metadata
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plugins.cuda.errors import KernelError
from plugins.cuda.source import KernelSource

NVRTC_PACKAGE = "nvidia-cuda-nvrtc"
# Newer ones write PTX that a driver of CUDA 13.0 cannot load.
NVRTC_VERSION = "13.0.88"
OPTIONS = ("-std=c++17", "-default-device", "--ptxas-options=-v")

_REGISTERS = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_ENTRY = re.compile(r"(?:Compiling entry function|Function properties for) '?(\w+)'?")


@dataclass(frozen=True)
class EntryUsage:
    """What ptxas says of one kernel; per thread, in the units of the names."""

    registers: int
    spill_bytes: int
    static_shared_bytes: int


@dataclass(frozen=True)
class Compiled:
    """One image: a cubin for an `sm_` arch, PTX for a `compute_` one (whose registers the driver decides later)."""

    arch: str
    image: bytes
    usage: dict[str, EntryUsage]
    log: str

    @property
    def registers(self) -> int:
        """The most registers any kernel of the image uses per thread."""
        return max((entry.registers for entry in self.usage.values()), default=0)

    @property
    def spill_bytes(self) -> int:
        """Bytes stored or loaded by spills in all kernels of the image, per thread."""
        return sum(entry.spill_bytes for entry in self.usage.values())


@cache
def nvrtc_version() -> str:
    """Return the version of the NVRTC this process loads: the wheel's, or major.minor of one from elsewhere.

    Raises:
        KernelError: cuda-python or NVRTC is missing.
    """
    nvrtc = _bindings()
    try:
        loaded = Path(_pathfinder().load_nvidia_dynamic_lib("nvrtc").abs_path).resolve()
        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # the loader has its own exception types
        raise KernelError(f"cannot load NVRTC: {error}; pip install {NVRTC_PACKAGE}=={NVRTC_VERSION}") from error
    _check(nvrtc, status)
    try:
        wheel = importlib.metadata.distribution(NVRTC_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"{major}.{minor}"
    files = {Path(str(wheel.locate_file(file))).resolve() for file in wheel.files or () if "libnvrtc.so" in file.name}
    return wheel.version if loaded in files else f"{major}.{minor}"


def require_pinned_nvrtc() -> None:
    """Check that the NVRTC of this process is the pinned wheel's.

    Raises:
        KernelError: it is missing or another one.
    """
    version = nvrtc_version()
    if version != NVRTC_VERSION:
        raise KernelError(
            f"NVRTC {version} is loaded, but kernels are built with {NVRTC_VERSION}: "
            f"pip install {NVRTC_PACKAGE}=={NVRTC_VERSION}"
        )


def compile_source(source: KernelSource, arch: str) -> Compiled:
    """Compile `source` for `arch` ("sm_90a" gives a cubin, "compute_80" PTX).

    Raises:
        KernelError: NVRTC is missing, or the source does not compile; the message holds the compiler's first error.
    """
    nvrtc_version()
    nvrtc = _bindings()
    headers = source.headers()
    status, program = nvrtc.nvrtcCreateProgram(
        source.text().encode(),
        f"{source.name}.cu".encode(),
        len(headers),
        [text.encode() for text in headers.values()],
        [name.encode() for name in headers],
    )
    _check(nvrtc, status)
    try:
        options = [option.encode() for option in compile_options(source, arch)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _text(nvrtc, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        log = log.rstrip("\0\n ")
        if int(status) != 0:
            raise KernelError(f"{source.id} does not compile for {arch}: {_first_error(log)}")
        getters = (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        if not arch.startswith("sm_"):
            getters = (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        return Compiled(arch, _text(nvrtc, *getters, program), parse_usage(log), log)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compile_options(source: KernelSource, arch: str) -> list[str]:
    """Return the compiler's options, none of which holds a path."""
    return [*OPTIONS, f"--gpu-architecture={arch}", *(f"-D{macro}={value}" for macro, value in source.defines)]


def parse_usage(log: str) -> dict[str, EntryUsage]:
    """Return what `--ptxas-options=-v` wrote of each kernel, by the kernel's name."""
    usage: dict[str, EntryUsage] = {}
    entry, spill_bytes = "", 0
    for line in log.splitlines():
        if found := _ENTRY.search(line):
            entry, spill_bytes = found.group(1), 0
        if found := _SPILLS.search(line):
            spill_bytes = int(found.group(1)) + int(found.group(2))
        if found := _REGISTERS.search(line):
            usage[entry] = EntryUsage(int(found.group(1)), spill_bytes, int(found.group(2) or 0))
    return usage


def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelError(f"cuda-python is not installed ({error}); pip install cuda-python") from error
    return nvrtc


def _pathfinder() -> Any:
    import cuda.pathfinder

    return cuda.pathfinder


def _text(nvrtc: Any, get_size: Any, get: Any, program: Any) -> bytes:
    status, size = get_size(program)
    _check(nvrtc, status)
    if size <= 1:  # Python shares one-byte strings, which must not be written to
        return b""
    text = bytes(size)
    (status,) = get(program, text)
    _check(nvrtc, status)
    return text


def _check(nvrtc: Any, status: Any) -> None:
    if int(status) != 0:
        raise KernelError(f"NVRTC failed: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")


def _first_error(log: str) -> str:
    return next((line for line in log.splitlines() if "error" in line), log.splitlines()[0] if log else "no log")
