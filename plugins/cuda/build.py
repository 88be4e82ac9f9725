"""Compile many kernel sources for many GPU architectures, side by side, and keep every image under what made it."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plugins.cuda.nvrtc import Compiled, EntryUsage, compile_options, compile_source, nvrtc_version
from plugins.cuda.source import KernelSource

_IMAGE, _REPORT = "image", "json"

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Built:
    """One image and what is known of it. `seconds` is 0 for one that was kept from before."""

    source: KernelSource
    compiled: Compiled
    digest: str
    seconds: float

    @property
    def file(self) -> str:
        """Its path in a folder of kernels."""
        return f"{self.compiled.arch}/{self.source.id}.{'cubin' if self.compiled.arch.startswith('sm_') else 'ptx'}"


def build_images(
    jobs: Sequence[tuple[KernelSource, str]], cache: Path, report: Report, workers: int = 2
) -> list[Built]:
    """Compile each source for its arch, or take the image from `cache`; in the order of `jobs`.

    NVRTC compiles outside Python's lock, so threads are enough. `report` gets the share that is done and its name.

    Raises:
        KernelError: NVRTC is missing or a source does not compile; what was compiled before stays in the cache.
    """
    nvrtc_version()  # a missing compiler is one error, not one in each thread
    cache.mkdir(parents=True, exist_ok=True)
    done: dict[tuple[KernelSource, str], Built] = {}
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(_build, source, arch, cache): (source, arch) for source, arch in jobs}
        try:
            for future in as_completed(running):
                source, arch = running[future]
                done[source, arch] = future.result()
                report(len(done) / len(jobs), f"{source.name} for {arch}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[job] for job in jobs]


def image_digest(source: KernelSource, arch: str) -> str:
    """Return the key of an image: source, headers, macros, options and compiler."""
    parts = [source.digest(), nvrtc_version(), *compile_options(source, arch)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write_images(images: Sequence[Built], folder: Path) -> None:
    """Write `<arch>/<source id>.cubin` or `.ptx` for each, as plugins.cuda.library finds them."""
    for image in images:
        path = folder / image.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.compiled.image)


def spills(images: Sequence[Built]) -> list[str]:
    """Say of every kernel that spills registers, on which architectures and how many bytes a thread at most."""
    worst: dict[str, dict[str, int]] = {}
    for image in images:
        for entry, usage in image.compiled.usage.items():
            if usage.spill_bytes:
                archs = worst.setdefault(entry, {})
                archs[image.compiled.arch] = max(archs.get(image.compiled.arch, 0), usage.spill_bytes)
    return [
        f"{entry} ({', '.join(f'{arch} {count} bytes' for arch, count in archs.items())})"
        for entry, archs in sorted(worst.items())
    ]


def _build(source: KernelSource, arch: str, cache: Path) -> Built:
    digest = image_digest(source, arch)
    kept = _kept(cache, digest, arch)
    if kept is not None:
        return Built(source, kept, digest, 0.0)
    started = time.monotonic()
    compiled = compile_source(source, arch)
    seconds = time.monotonic() - started
    _keep(cache, digest, compiled)
    return Built(source, compiled, digest, seconds)


def _kept(cache: Path, digest: str, arch: str) -> Compiled | None:
    """An image that is there and whole."""
    try:
        fields = json.loads((cache / f"{digest}.{_REPORT}").read_text(encoding="utf-8"))
        image = (cache / f"{digest}.{_IMAGE}").read_bytes()
        usage = {entry: EntryUsage(**values) for entry, values in fields["usage"].items()}
        whole = fields["sha256"] == hashlib.sha256(image).hexdigest()
        if not whole:
            return None
        for suffix in (_IMAGE, _REPORT):
            with suppress(OSError):  # a cache that may only be read
                os.utime(cache / f"{digest}.{suffix}")  # cleaning goes by when an image was last used
        return Compiled(arch, image, usage, fields["log"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(cache: Path, digest: str, compiled: Compiled) -> None:
    usage = {entry: vars(values) for entry, values in compiled.usage.items()}
    fields = {"sha256": hashlib.sha256(compiled.image).hexdigest(), "usage": usage, "log": compiled.log}
    _write(cache / f"{digest}.{_IMAGE}", compiled.image)
    _write(cache / f"{digest}.{_REPORT}", json.dumps(fields).encode())


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, whoever else writes the same."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(name, path)
