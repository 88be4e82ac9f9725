"""Whether this machine's NVIDIA GPU runs a CUDA engine: its architecture, the driver, this torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from plugins.cuda.archs import ALL_RTX_ARCHS, device_archs
from runtime.findings import Finding
from runtime.machine import Machine
from runtime.targets import old_driver


def gpu_findings(needs: Mapping[str, Any], machine: Machine) -> Iterator[Finding]:
    """Every check of a GPU, of the first one: it is the one that an engine takes."""
    if not machine.gpus:
        has = f"driver {machine.driver}, but no GPU answers" if machine.driver else "none, and no driver"
        yield Finding(
            "GPU", "fails", f"an NVIDIA GPU is needed; here: {has}; run it with --target cpu", rebuilding_helps=False
        )
        return
    gpu, archs = machine.gpus[0], [str(arch) for arch in needs.get("archs", [])]
    major, minor = gpu.compute_capability
    taken = next((arch for arch in device_archs(gpu.compute_capability) if arch in archs), None)
    text = f"{gpu.name}, sm_{major}{minor}; kernels for {', '.join(archs)}"
    if taken is None:
        yield Finding("GPU", "fails", text)
    elif taken.startswith("compute_"):
        yield Finding("GPU", "note", f"{text}: the driver compiles the engine's PTX at its first load")
    elif taken in needs.get("never_run", []):
        yield Finding("GPU", "note", f"{text}: takes {taken}, which was built and never run before")
    else:
        yield Finding("GPU", "ok", f"{text}: takes {taken}")
    if reason := old_driver(machine.driver):
        yield Finding("driver", "fails", reason, rebuilding_helps=False)
    else:
        yield Finding("driver", "ok", f"{machine.driver or 'unknown'} (>= {needs.get('minimum_driver')})")
    yield _torch_with_cuda()


def plan_findings(needs: Mapping[str, Any], machine: Machine, target: str) -> Iterator[Finding]:
    """The same for a TensorRT plan."""
    if not machine.gpus:
        has = f"driver {machine.driver}, but no GPU answers" if machine.driver else "none, and no driver"
        text = f"an NVIDIA GPU is needed; here: {has}; run it with another --target"
        yield Finding("GPU", "fails", text, rebuilding_helps=False)
        return
    gpu, archs = machine.gpus[0], [str(arch) for arch in needs.get("archs", [])]
    major, minor = gpu.compute_capability
    text = f"{gpu.name}, sm_{major}{minor}; a plan for {', '.join(archs)}"
    if f"sm_{major}{minor}" in archs:
        yield Finding("GPU", "note" if f"sm_{major}{minor}" in needs.get("never_run", []) else "ok", text)
    elif target == "tensorrt_rtx" and f"sm_{major}{minor}" in ALL_RTX_ARCHS:
        yield Finding("GPU", "fails", text, {"archs": f"[{','.join([*archs, f'sm_{major}{minor}'])}]"})
    else:
        helps = target == "tensorrt"
        text += "" if helps else ", none of which TensorRT-RTX makes for this GPU: run it with another --target"
        yield Finding("GPU", "fails", text, rebuilding_helps=helps)
    if reason := old_driver(machine.driver):
        yield Finding("driver", "fails", reason, rebuilding_helps=False)
    else:
        yield Finding("driver", "ok", f"{machine.driver or 'unknown'} (>= {needs.get('minimum_driver')})")
    yield _torch_with_cuda()


def _torch_with_cuda() -> Finding:
    """Whether torch reaches the GPU; imports it."""
    try:
        import torch
    except ImportError as error:
        return Finding("torch's CUDA", "fails", f"torch cannot be imported ({error})", rebuilding_helps=False)
    if torch.version.cuda is None:
        text = f"torch {torch.__version__} was built without CUDA; install torch from its index for CUDA 13.0 (cu130)"
        return Finding("torch's CUDA", "fails", text, rebuilding_helps=False)
    if not torch.cuda.is_available():
        text = f"torch {torch.__version__} sees no GPU; check CUDA_VISIBLE_DEVICES"
        return Finding("torch's CUDA", "fails", text, rebuilding_helps=False)
    return Finding("torch's CUDA", "ok", torch.version.cuda)
