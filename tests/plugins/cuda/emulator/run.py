"""Run a kernel on the CPU: the same .cu compiled by g++ over host versions of the primitives.

Each thread is a fiber, blocks run one after another (all at once in a cooperative launch), and collectives of a warp
take place when its last lane has come. Shared memory and the targets of copies under way hold NaN. What a GPU would
leave undefined is an error: a deadlock, a stray access, a misaligned address, shared memory beyond what was asked for.
It does not see races that the order of the fibers hides (try both orders), nor what a GPU's memory model allows.
"""

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.cuda.source import INCLUDE, PLUGINS, KernelSource

_HERE = Path(__file__).resolve().parent
_ENTRY = re.compile(r"(\w+)\s*\(\s*__grid_constant__|^[A-Z_]+\((\w+_kernel),", re.MULTILINE)  # or by a macro
_FLAGS = ("-std=c++20", "-O1", "-g1", "-w", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing")
_MESSAGE_BYTES = 1024
_compiler = shutil.which("g++")

needs_emulator = pytest.mark.skipif(_compiler is None, reason="the kernel emulator needs g++")

Size = int | tuple[int, int] | tuple[int, int, int]


class EmulationError(Exception):
    """A kernel did what a GPU leaves undefined, or waits for ever; the message says what and which thread."""


def emulate(
    source: KernelSource,
    grid: Size,
    block: Size,
    shared_bytes: int,
    params: ctypes.Structure | Sequence[Any],
    entry: str | None = None,
    cooperative: bool = False,
    cluster: int = 1,
    reverse: bool = False,
    arch: int = 900,
) -> None:
    """Run one launch; params hold addresses of CPU tensors (`tensor.data_ptr()`).

    Args:
        source: what to run; compiled once per content.
        grid: blocks; x, (x, y) or (x, y, z).
        block: threads of a block, likewise.
        shared_bytes: dynamic shared memory of a block.
        params: the kernel's argument, or ctypes values of all its arguments where it has several.
        entry: the kernel's name; by default the file's stem with `_kernel`.
        cooperative: all blocks run at the same time.
        cluster: blocks of a cluster, which do too.
        reverse: the last thread and the last block go first.
        arch: __CUDA_ARCH__, such as 800 for the paths without bulk copies.

    Raises:
        EmulationError: see there.
    """
    name = entry or f"{source.path.stem}_kernel"
    library = ctypes.CDLL(str(_build(source, name, arch)))
    if isinstance(params, ctypes.Structure):
        size = ctypes.c_uint.in_dll(library, f"{source.path.stem}_params_bytes").value
        if size != ctypes.sizeof(params):
            text = f"{source.path.name} has parameters of {size} bytes, Python of {ctypes.sizeof(params)}"
            raise EmulationError(text)
        given: Any = ctypes.byref(params)
    else:
        given = (ctypes.c_void_p * len(params))(*(ctypes.addressof(value) for value in params))
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    failed = library[f"emulate_{name}"](
        given,
        (ctypes.c_uint * 3)(*_three(grid)),
        (ctypes.c_uint * 3)(*_three(block)),
        ctypes.c_uint(shared_bytes),
        int(cooperative),
        ctypes.c_uint(cluster),
        int(reverse),
        message,
        ctypes.c_size_t(_MESSAGE_BYTES),
    )
    if failed:
        raise EmulationError(f"{name}: {message.value.decode(errors='replace')}")


def emulated_rows(address: int, rows: int, columns: int, box_rows: int) -> bytes:
    """As plugins.cuda.tensor_map.encode_rows, for the emulator's tensor_copy.cuh."""
    return emulated_tensor(address, (columns, rows), (2 * columns,), (64, box_rows))


def emulated_tensor(
    address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], most_bytes: int = 128
) -> bytes:
    """As plugins.cuda.tensor_map.encode_tensor."""
    missing = 5 - len(sizes)
    ones = (1,) * missing
    return struct.pack("<Q4Q5I5I48x", address, *strides, *(0,) * missing, *sizes, *ones, *box, *ones)


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy whose end is the end of readable memory: an access past it is an EmulationError.

    The copy's start is aligned to 16 bytes, so up to 15 bytes after its end go unnoticed. Keep the original's dtype.
    """
    data = tensor.contiguous()
    num_bytes = data.numel() * data.element_size()
    aligned = -(-num_bytes // 16) * 16
    pages = -(-aligned // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    flat = torch.frombuffer(memory, dtype=data.dtype, count=data.numel(), offset=pages - aligned)
    copy = flat.view(data.shape)
    copy.copy_(data)
    return copy


def _three(size: Size) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else size
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


@cache
def _build(source: KernelSource, entry: str, arch: int) -> Path:
    assert _compiler is not None, "mark the test with needs_emulator"
    entries = sorted({entry, *(direct or by_macro for direct, by_macro in _ENTRY.findall(source.text()))})
    unit = "".join([f'#include "{source.path}"\n', *(f"EMULATED_ENTRY({entry})\n" for entry in entries)])
    library = _cache_folder() / f"{source.id}-{_digest(source, unit, arch)}.so"
    if not library.exists():
        _compile(unit, [f"-D__CUDA_ARCH__={arch}", *(f"-D{macro}={value}" for macro, value in source.defines)], library)
    return library


def _compile(unit: str, defines: list[str], library: Path) -> None:
    own = library.with_suffix(f".{os.getpid()}.so")
    paths = [f"-I{folder}" for folder in (_HERE / "include", _HERE, INCLUDE, PLUGINS)]
    command = [
        str(_compiler),
        *_FLAGS,
        *defines,
        *paths,
        "-shared",
        "-include",
        str(_HERE / "device.h"),
        "-o",
        str(own),
    ]
    command += ["-x", "c++", "-", str(_HERE / "fibers.cpp")]
    result = subprocess.run(command, input=unit, capture_output=True, text=True, check=False)
    if result.returncode:
        raise EmulationError(f"g++ does not compile this for the emulator:\n{result.stderr[:4000]}")
    own.replace(library)


def _digest(source: KernelSource, unit: str, arch: int) -> str:
    digest = hashlib.sha256(f"{source.digest()}{unit}{arch}{_FLAGS}".encode())
    for file in sorted(_HERE.rglob("*.*")):
        if file.suffix in (".h", ".cuh", ".cpp"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"enginewright-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
