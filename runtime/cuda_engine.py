"""The CUDA engine's backend: checks of this machine first, then weights, then a KV cache of what memory is left."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from plugins.cuda.archs import device_archs
from plugins.cuda.driver import driver
from plugins.cuda.errors import KernelError
from plugins.cuda.library import add_folder, has_image
from runtime.backends.base import EngineLimits
from runtime.backends.cuda import CudaBackend
from runtime.backends.gpu_errors import GIB, gpu_errors
from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_FILE
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.kernel_list import KERNELS_DIR, KernelList
from runtime.kernels import kernels_for
from runtime.kv.cache import KVCache
from runtime.machine import driver_version
from runtime.model.decoder import Decoder
from runtime.model.layer_steps import layer_sources
from runtime.model.whole_step import step_sources
from runtime.spec import ModelSpec
from runtime.speculation.costs import made_up_batch
from runtime.tuning import NO_CHOICES, Choices, device_name, measure, read_choices, write_tuning

DEVICE = "cuda"


def make_cuda_backend(
    checkpoint: Checkpoint,
    plan: EnginePlan,
    engine_dir: Path,
    draft_dir: Path | None = None,
    bundle: Path | None = None,
) -> CudaBackend:
    """Load a CUDA engine on torch's current device.

    Args:
        draft_dir: a drafter that will be loaded beside it; one that has a KV cache of its own gets its share.
        bundle: the folder in whose attestations measured choices of kernels may be.

    Raises:
        EnginewrightError: no GPU or a lost one, another architecture, an old driver, a missing package, no memory.
    """
    require_gpu(KernelList.read(engine_dir))
    add_folder(engine_dir / KERNELS_DIR)
    _require_kernels(checkpoint.spec, plan)
    dtype = getattr(torch, plan.dtype)
    few_rows = step_sources(checkpoint.spec, dtype, plan.block_size) + layer_sources(checkpoint.spec, dtype)
    choices = NO_CHOICES if bundle is None else read_choices(bundle, engine_dir, device_name())
    return load_on_gpu(checkpoint, plan, draft_dir, all(map(has_image, few_rows)), choices)


def load_on_gpu(
    checkpoint: Checkpoint,
    plan: EnginePlan,
    draft_dir: Path | None = None,
    use_whole_step: bool = True,
    choices: Choices = NO_CHOICES,
) -> CudaBackend:
    """As `make_cuda_backend`, with whatever kernels this process has; where it was given none, it compiles them.

    use_whole_step: passes over few rows go through kernels of their own (see `CudaBackend`); without, all through the
        ops.
    """
    dtype = getattr(torch, plan.dtype)
    with gpu_errors("loading the weights"):
        _require_memory(checkpoint.spec, dtype, torch.cuda.mem_get_info()[0])
        decoder = Decoder(checkpoint, dtype, plan.linear, plan.max_seq_len, DEVICE)
        plan = sized(plan, checkpoint.spec, draft_dir, torch.cuda.mem_get_info()[0])
    num_blocks = plan.num_blocks + 1  # and one that padding writes to
    with gpu_errors(f"taking {num_blocks * plan.block_bytes(checkpoint.spec) / GIB:.1f} GiB for the KV cache"):
        cache = KVCache(checkpoint.spec, num_blocks, plan.block_size, dtype, DEVICE)
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    with gpu_errors("trying the largest steps"):
        backend = CudaBackend(decoder, cache, limits, use_whole_step, choices)
        backend.try_largest_steps()
    return backend


def tune(checkpoint: Checkpoint, engine_dir: Path, folder: Path, report: Callable[[float, str], None]) -> Path:
    """Measure which kernels are fastest for which passes on this GPU; `folder` gets the file, whose path is returned.

    Raises:
        EnginewrightError: as `make_cuda_backend`; the folder cannot be written.
    """
    backend = make_cuda_backend(checkpoint, EnginePlan.read(engine_dir), engine_dir)
    with gpu_errors("timing its kernels"):
        timings = measure(backend, partial(made_up_batch, backend), backend.limits.max_batch_size, report)
    about = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver_version()}
    return write_tuning(folder, engine_dir, device_name(), timings, about)


def require_gpu(kernels: KernelList) -> None:
    """Check that the first GPU takes the engine's kernels.

    Raises:
        EnginewrightError: it does not; the message says why, and what to do.
    """
    try:
        driver()
    except KernelError as error:
        raise EnginewrightError(f"the cuda engine cannot run here: {error}; or run it with --target cpu") from error
    if not torch.cuda.is_available():
        built = "was built without CUDA" if torch.version.cuda is None else "sees no GPU"
        raise EnginewrightError(
            f"the cuda engine cannot run here: torch {torch.__version__} {built}; install torch for CUDA 13.0 (cu130), "
            "or run it with --target cpu"
        )
    capability = torch.cuda.get_device_capability()
    if not set(device_archs(capability)) & set(kernels.archs):
        arch = f"sm_{capability[0]}{capability[1]}"
        raise EnginewrightError(
            f"{torch.cuda.get_device_name()} is {arch}; this engine has kernels for {', '.join(kernels.archs)}; "
            f"build it again with target.cuda.archs naming {arch} or compute_80, or run it with --target cpu"
        )


def _require_kernels(spec: ModelSpec, plan: EnginePlan) -> None:
    """Look for every image that this version's kernels for the model have on this GPU, before any weight is read."""
    archs = device_archs(torch.cuda.get_device_capability())
    needed = kernels_for(spec, plan.dtype, plan.block_size)
    runnable = [kernel.source for kernel in needed if not kernel.archs or set(kernel.archs) & set(archs)]
    missing = [source.id for source in runnable if not has_image(source)]
    if missing:
        raise EnginewrightError(
            f"the engine has no kernel {missing[0]} for {torch.cuda.get_device_name()}"
            + (f", nor {len(missing) - 1} others" if missing[1:] else "")
            + "; another version of Enginewright built it: build it again with this one"
        )


def _require_memory(spec: ModelSpec, dtype: torch.dtype, free_bytes: int) -> None:
    """Compare the weights' size with what is free: the clearest error of too small a GPU."""
    needed = spec.num_parameters * dtype.itemsize
    if needed > free_bytes:
        raise EnginewrightError(
            f"the weights take {needed / GIB:.1f} GiB, and {free_bytes / GIB:.1f} GiB of "
            f"{torch.cuda.get_device_name()} are free; stop what else runs on it "
            "(nvidia-smi), or take a larger GPU or a smaller model"
        )


def sized(plan: EnginePlan, spec: ModelSpec, draft_dir: Path | None, free_bytes: int) -> EnginePlan:
    """Give the plan its number of KV blocks, where the load is to count them.

    Raises:
        EnginewrightError: what is free does not hold one request of max_seq_len.
    """
    if not plan.sized_at_load:
        return plan
    drafting = _draft_model(draft_dir)
    block_bytes = plan.block_bytes(spec) + (plan.block_bytes(drafting.spec) if drafting else 0)
    weights = (drafting.path / "weights.safetensors").stat().st_size if drafting else 0
    usable = int((free_bytes - weights) * plan.kv_cache_fraction)
    num_blocks = usable // block_bytes - 1  # and one that padding writes to
    needed = -(-plan.max_seq_len // plan.block_size)
    if num_blocks < needed:
        fits = max(num_blocks, 0) * plan.block_size
        raise EnginewrightError(
            f"{free_bytes / GIB:.1f} GiB of the GPU are free beside the weights, and kv_cache_fraction "
            f"{plan.kv_cache_fraction} of it holds {fits} tokens; one request of max_seq_len {plan.max_seq_len} needs "
            f"{needed * block_bytes / GIB:.1f} GiB; free the GPU, or build with a lower target.cuda.max_seq_len"
        )
    return plan.with_blocks(num_blocks)


def _draft_model(draft_dir: Path | None) -> Checkpoint | None:
    """The smaller model that drafts, where one does."""
    if draft_dir is None:
        return None
    try:
        drafter = json.loads((draft_dir / DRAFT_FILE).read_text(encoding="utf-8"))["drafter"]
    except (OSError, ValueError, KeyError, TypeError):  # loading it says what is wrong
        return None
    return Checkpoint(draft_dir) if drafter == "model" else None
