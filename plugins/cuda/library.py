"""The kernels of this process: images found in bundles' folders, or compiled on the spot, loaded once per device."""

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from plugins.cuda.archs import device_archs, own_arch
from plugins.cuda.driver import check, driver
from plugins.cuda.errors import KernelError
from plugins.cuda.source import KernelSource


@dataclass(frozen=True)
class Kernel:
    """An entry point loaded on one device, ready for `plugins.cuda.launch.launch`."""

    name: str
    function: Any
    device: int


@dataclass(frozen=True)
class _Image:
    name: str
    data: bytes


_folders: list[Path] = []
_compile_missing = True
_kept: Path | None = None
_libraries: dict[tuple[KernelSource, int], Any] = {}
_kernels: dict[tuple[KernelSource, str, int], Kernel] = {}
_lock = threading.Lock()


def add_folder(folder: Path) -> None:
    """Take images from a bundle's kernel folder (`<arch>/<source id>.cubin`, `compute_80/<source id>.ptx`) from now on.

    Once there is a folder, a kernel that is in none is an error: nothing is compiled behind an engine's back.
    """
    global _compile_missing
    with _lock:
        if folder not in _folders:
            _folders.insert(0, folder)
        _compile_missing = False


def keep_compiled(folder: Path) -> None:
    """Keep what is compiled on the spot in this cache of images, and take it from there, from now on."""
    global _kept
    _kept = folder


def forget_folders() -> None:
    """Undo every add_folder and forget what was loaded; for tests."""
    global _compile_missing
    with _lock:
        _folders.clear()
        _libraries.clear()
        _kernels.clear()
        _compile_missing = True


def get_kernel(source: KernelSource, entry: str, params_type: type[ctypes.Structure] | None = None) -> Kernel:
    """Return the entry point `entry` of `source` on torch's current device, loading it at the first call.

    Args:
        source: what was compiled; its id names the image.
        entry: the name of an `extern "C" __global__` function.
        params_type: the Python mirror of its params struct, whose size is compared at loading with the image's
            `<file stem>_params_bytes`: attention.cu has `attention_params_bytes`.

    Raises:
        KernelError: no driver, no image for this GPU, a damaged image, no such entry, or a struct of another size.
    """
    device = torch.cuda.current_device()
    key = (source, entry, device)
    kernel = _kernels.get(key)
    if kernel is None:
        with _lock:
            kernel = _load_kernel(source, entry, params_type, device)
            _kernels[key] = kernel
    return kernel


def has_image(source: KernelSource) -> bool:
    """Whether the engine has this kernel for torch's current device; where there is no engine, it can be compiled."""
    archs = device_archs(torch.cuda.get_device_capability())
    return _compile_missing or any(_image_path(folder, arch, source).is_file() for folder in _folders for arch in archs)


def _load_kernel(source: KernelSource, entry: str, params_type: type[ctypes.Structure] | None, device: int) -> Kernel:
    cuda = driver()
    library = _libraries.get((source, device))
    if library is None:
        torch.cuda.synchronize()  # makes torch's context current, in which the functions are loaded
        image = _find_image(source, torch.cuda.get_device_capability(device))
        library = check(f"loading {image.name}", cuda.cuLibraryLoadData(image.data, [], [], 0, [], [], 0))
        _libraries[source, device] = library
    if params_type is not None:
        _check_params(source, entry, params_type, library)
    handle = check(f"{source.id} has no kernel {entry}", cuda.cuLibraryGetKernel(library, entry.encode()))
    # The function, not the library's handle: loading at the first launch would break a graph capture.
    function = check(f"loading {entry} of {source.id}", cuda.cuKernelGetFunction(handle))
    return Kernel(entry, function, device)


def _check_params(source: KernelSource, entry: str, params_type: type[ctypes.Structure], library: Any) -> None:
    cuda = driver()
    symbol = f"{source.path.stem}_params_bytes"
    pointer, _ = check(f"{source.id} has no {symbol}", cuda.cuLibraryGetGlobal(library, symbol.encode()))
    size = ctypes.c_uint()
    check(f"reading {symbol}", cuda.cuMemcpyDtoH(ctypes.addressof(size), pointer, ctypes.sizeof(size)))
    expected = ctypes.sizeof(params_type)
    if size.value != expected:
        raise KernelError(
            f"{entry} of {source.id} takes {size.value} bytes of parameters, this Enginewright passes {expected}: "
            "the engine was built by another version; rebuild it"
        )


def _find_image(source: KernelSource, capability: tuple[int, int]) -> _Image:
    archs = device_archs(capability)
    for folder in _folders:
        for arch in archs:
            path = _image_path(folder, arch, source)
            if path.is_file():
                return _Image(f"{arch}/{path.name}", path.read_bytes())
    if not _compile_missing:
        raise KernelError(
            f"the engine has no kernel {source.id} for this GPU (sm_{capability[0]}{capability[1]}); "
            "build it again with target.cuda.archs naming this one"
        )
    return _compile_here(source, capability)


def _image_path(folder: Path, arch: str, source: KernelSource) -> Path:
    return folder / arch / f"{source.id}.{'ptx' if arch.startswith('compute_') else 'cubin'}"


@cache
def _compile_here(source: KernelSource, capability: tuple[int, int]) -> _Image:
    from plugins.cuda.build import build_images
    from plugins.cuda.nvrtc import compile_source

    arch = own_arch(capability)
    if _kept is None:
        return _Image(f"{arch}/{source.id}, compiled here", compile_source(source, arch).image)
    (built,) = build_images([(source, arch)], _kept, lambda share, text: None)
    return _Image(f"{arch}/{source.id}, compiled here", built.compiled.image)
