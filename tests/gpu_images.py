"""A pytest plugin for GPU runs: it shares what tests compile between processes, and notes which images they loaded.

Tests compile kernels on the spot. `make test-gpu` may have many processes, most of which need the same images, so these
are kept where builds keep theirs.
"""

import os
from pathlib import Path

import pytest

import plugins.cuda.library as library
from plugins.cuda.build import build_images
from plugins.cuda.source import KernelSource

LOADED: dict[str, dict[str, str]] = {}  # architecture -> image -> digest of its sources, of this process
_find_image = library._find_image


def pytest_configure(config: pytest.Config) -> None:
    library._compile_here = _kept_or_compiled
    library._find_image = _noted


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["images"] = LOADED


def own_arch(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}" + ("a" if capability[0] >= 9 else "")


def _kept_or_compiled(source: KernelSource, capability: tuple[int, int]) -> "library._Image":
    arch = own_arch(capability)
    folder = Path(os.environ.get("ENGINEWRIGHT_HOME") or ".enginewright", "cache", "cubins")
    (built,) = build_images([(source, arch)], folder, lambda share, text: None, workers=1)
    return library._Image(f"{source.id} compiled here", built.compiled.image)


def _noted(source: KernelSource, capability: tuple[int, int]) -> "library._Image":
    image = _find_image(source, capability)
    arch, _, file = image.name.partition("/")
    LOADED.setdefault(arch if file else own_arch(capability), {})[source.id] = source.digest()
    return image
