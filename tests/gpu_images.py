"""A pytest plugin for GPU runs: it shares what tests compile between processes, and notes which images they loaded.

Tests compile kernels on the spot. `make test-gpu` may have many processes, most of which need the same images, so these
are kept where builds keep theirs.
"""

import os
from pathlib import Path

import pytest

import plugins.cuda.library as library
from plugins.cuda.source import KernelSource

LOADED: dict[str, dict[str, str]] = {}  # architecture -> image -> digest of its sources, of this process
_find_image = library._find_image


def pytest_configure(config: pytest.Config) -> None:
    library.keep_compiled(Path(os.environ.get("ENGINEWRIGHT_HOME") or ".enginewright", "cache", "cubins"))
    library._find_image = _noted


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["images"] = LOADED


def _noted(source: KernelSource, capability: tuple[int, int]) -> "library._Image":
    image = _find_image(source, capability)
    arch, _, _ = image.name.partition("/")
    LOADED.setdefault(arch, {})[source.id] = source.digest()
    return image
