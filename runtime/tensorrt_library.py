"""The TensorRT libraries: which distribution and extra each is, and clear words where one is missing."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runtime.errors import EnginewrightError

DISTRIBUTIONS = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
_WHY_NOT = {
    "tensorrt_rtx": "its wheels are for Linux and Windows on x86-64",
    "tensorrt": "its wheels come from NVIDIA's index and need a machine with its driver to build",
}


def library_version(library: str) -> str:
    """The installed version.

    Raises:
        EnginewrightError: it is not installed; the message names the extra.
    """
    name = DISTRIBUTIONS[library]
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise EnginewrightError(
            f"target {library} needs the library {name}, which is not installed: pip install 'enginewright[{name}]' "
            f"({_WHY_NOT[library]}); or leave {library} out of target=[...]"
        ) from error


def import_library(library: str) -> Any:
    """Import it.

    Raises:
        EnginewrightError: it is not installed, or is broken.
    """
    installed = library_version(library)
    try:
        return import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        raise EnginewrightError(
            f"{DISTRIBUTIONS[library]} {installed} is installed and cannot be imported ({error}); install it again, or "
            f"leave {library} out of target=[...]"
        ) from error
