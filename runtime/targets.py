"""Which targets there are, what each needs to be built and to run, and what of that this machine has.

Asks for installed packages by name and imports none of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from plugins.cuda.archs import MINIMUM_DRIVER, device_archs
from runtime.machine import Gpu, Machine, look


@dataclass(frozen=True)
class Target:
    """One kind of engine. Packages are distributions of the package index."""

    name: str
    build_packages: tuple[str, ...]  # to compile an engine, on any machine
    run_packages: tuple[str, ...]
    compute_capabilities: tuple[tuple[int, int], ...]  # of GPUs that run it; empty: needs no GPU
    or_newer: bool = False  # whether GPUs beyond the last of them run it too
    note: str = ""  # what "built" means where it is less than an engine
    hosted: bool = False  # another runtime runs it


@dataclass(frozen=True)
class Side:
    """Whether a target can be built, or run, here; the reason, and what to do where it cannot."""

    possible: bool
    reason: str
    remedy: str = ""


TARGETS = (
    Target("cpu", ("torch", "transformers"), ("torch",), ()),
    Target("cuda", ("cuda-bindings", "nvidia-cuda-nvrtc"), ("cuda-bindings",), ((8, 0),), or_newer=True),
    Target("onnx", ("onnx", "onnxruntime"), ("onnxruntime",), ()),
    Target("tensorrt_rtx", ("tensorrt-rtx", "onnx"), ("tensorrt-rtx",), ((8, 0), (8, 6), (8, 9), (12, 0)),
           or_newer=True),
    Target("tensorrt", ("tensorrt", "onnx"), ("tensorrt",), ((8, 0),), or_newer=True),
    Target("tensorrt_llm", ("torch", "transformers"), ("tensorrt-llm",), ((8, 0),), or_newer=True,
           note="its files and scripts; the engine itself where TensorRT-LLM is", hosted=True),
)  # fmt: skip
EXTRAS = ("tensorrt-rtx", "tensorrt")  # packages that only an extra of ours asks for


def build_side(target: Target) -> Side:
    """Whether this installation can compile engines for a target; no target needs a GPU for that."""
    missing = [name for name in target.build_packages if not installed(name)]
    if missing:
        return Side(False, f"{', '.join(missing)} not installed", _pip(missing))
    return Side(True, f"{target.note + '; ' if target.note else ''}{_versions(target.build_packages)}")


def run_side(target: Target, machine: Machine) -> Side:
    """Whether this machine can run engines of a target."""
    reason = _why_not_run(target, machine)
    if reason:
        remedy = _pip(target.run_packages)
        return Side(False, reason, f"a script in the bundle's engines/{target.name}" if target.hosted else remedy)
    return Side(True, _versions(target.run_packages))


def _why_not_run(target: Target, machine: Machine) -> str:
    """What is missing here; empty where nothing is."""
    if target.compute_capabilities and not machine.gpus:
        return "no NVIDIA GPU" + (f" (driver {machine.driver})" if machine.driver else " and no driver")
    if target.compute_capabilities and not any(_fits(target, gpu) for gpu in machine.gpus):
        wanted = ", ".join(map(_sm, target.compute_capabilities))
        found = ", ".join(f"{gpu.name} {_sm(gpu.compute_capability)}" for gpu in machine.gpus)
        return f"needs {wanted}{' or newer' if target.or_newer else ''}; here: {found}"
    missing = [name for name in target.run_packages if not installed(name)]
    if missing:
        return f"{', '.join(missing)} not installed"
    if target.hosted:
        return "TensorRT-LLM runs it, not this runtime"
    driver = old_driver(machine.driver) if target.name in ("cuda", "tensorrt_rtx") else ""
    return driver or (_torch_without_cuda() if target.name == "cuda" else "")


def _torch_without_cuda() -> str:
    """Why the installed torch reaches no GPU, as far as its version tells; empty where it may."""
    torch = installed("torch")
    return f"torch {torch} was built without CUDA" if torch.endswith("+cpu") else ""


def old_driver(driver: str) -> str:
    """Why a driver's version, such as 580.65.06, loads no kernels of CUDA 13.0; empty where it does or is unknown."""
    major = driver.partition(".")[0]
    if major.isdigit() and int(major) < MINIMUM_DRIVER:
        return f"driver {driver} is installed; needed is {MINIMUM_DRIVER} or newer"
    return ""


def why_not_run(name: str) -> str:
    """Why this machine cannot run engines of a target; empty where it can."""
    return _why_not_run(next(target for target in TARGETS if target.name == name), look())


def choose_target(
    built: Mapping[str, Mapping[str, Any]], asked: str | None, machine: Machine
) -> tuple[str, str]:  # fmt: skip
    """Return the target to run of those that a bundle has, and why in words.

    The one that is asked for; without one, cuda where it runs, else cpu or onnx, and what a bundle has alone in any
    case.

    Args:
        built: what each target's engine needs, by the bundle's manifest.
    """
    if asked is not None:
        return asked, "asked for"
    names = list(built)
    if len(names) == 1:
        return names[0], "the only one of this bundle"
    on_cpu = next((name for name in ("cpu", "onnx") if name in built), names[0])
    if "cuda" not in built:
        return on_cpu, "this bundle has no cuda"
    cuda = next(target for target in TARGETS if target.name == "cuda")
    if reason := _why_not_run(cuda, machine) or _lacks_kernels(built["cuda"], machine.gpus[0]):
        return on_cpu, f"cuda: {reason}"
    return "cuda", f"on {machine.gpus[0].name}"


def _lacks_kernels(needs: Mapping[str, Any], gpu: Gpu) -> str:
    """Why an engine's images do not load on a GPU; empty where some do, or where the manifest names none."""
    archs = [str(arch) for arch in needs.get("archs", [])]
    if not archs or set(archs) & set(device_archs(gpu.compute_capability)):
        return ""
    return f"{gpu.name} is {_sm(gpu.compute_capability)}, and the engine has kernels for {', '.join(archs)}"


def _fits(target: Target, gpu: Gpu) -> bool:
    newest = target.compute_capabilities[-1]
    return gpu.compute_capability in target.compute_capabilities or (
        target.or_newer and gpu.compute_capability >= newest
    )


def _sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


def installed(name: str) -> str:
    """A distribution's version; empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _pip(names: Iterable[str]) -> str:
    wanted = [f"'enginewright[{name}]'" if name in EXTRAS else name for name in names]
    return f"pip install {' '.join(wanted)}"


def _versions(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {installed(name)}" for name in names)
