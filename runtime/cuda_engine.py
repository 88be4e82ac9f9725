"""The CUDA engine's backend: checks of this machine first, then weights, then a KV cache of what memory is left."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from plugins.cuda.archs import device_archs
from plugins.cuda.driver import driver
from plugins.cuda.errors import KernelError
from plugins.cuda.library import add_folder, has_image
from runtime.backends.base import EngineLimits
from runtime.backends.cuda import CudaBackend
from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_FILE
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.kernel_list import KERNELS_DIR, KernelList
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.model.layer_steps import layer_sources
from runtime.model.whole_step import step_sources
from runtime.spec import ModelSpec

DEVICE = "cuda"
GIB = 2**30


def make_cuda_backend(
    checkpoint: Checkpoint, plan: EnginePlan, engine_dir: Path, draft_dir: Path | None = None
) -> CudaBackend:
    """Load a CUDA engine on torch's current device.

    draft_dir: a drafter that will be loaded beside it; one that has a KV cache of its own gets its share.

    Raises:
        EnginewrightError: no GPU or a lost one, another architecture, an old driver, a missing package, no memory.
    """
    require_gpu(KernelList.read(engine_dir))
    add_folder(engine_dir / KERNELS_DIR)
    dtype = getattr(torch, plan.dtype)
    few_rows = step_sources(checkpoint.spec, dtype, plan.block_size) + layer_sources(checkpoint.spec, dtype)
    return load_on_gpu(checkpoint, plan, draft_dir, use_whole_step=all(map(has_image, few_rows)))


def load_on_gpu(
    checkpoint: Checkpoint, plan: EnginePlan, draft_dir: Path | None = None, use_whole_step: bool = True
) -> CudaBackend:
    """As `make_cuda_backend`, with whatever kernels this process has; where it was given none, it compiles them.

    use_whole_step: passes over few rows go through kernels of their own (see `CudaBackend`); without, all through the
        ops.
    """
    dtype = getattr(torch, plan.dtype)
    with gpu_errors("loading the weights"):
        decoder = Decoder(checkpoint, dtype, plan.linear, plan.max_seq_len, DEVICE)
        plan = sized(plan, checkpoint.spec, draft_dir, torch.cuda.mem_get_info()[0])
        cache = KVCache(checkpoint.spec, plan.num_blocks + 1, plan.block_size, dtype, DEVICE)
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    return CudaBackend(decoder, cache, limits, use_whole_step)


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


@contextmanager
def gpu_errors(doing: str) -> Iterator[None]:
    """Turn torch's and the kernels' errors about the GPU into one line with a remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise EnginewrightError(
            f"the GPU ran out of memory {doing}: {free / GIB:.1f} of {total / GIB:.1f} GiB are free; stop what else "
            "runs on it (nvidia-smi), or build with lower target.cuda limits"
        ) from error
    except torch.AcceleratorError as error:
        raise EnginewrightError(
            f"the GPU failed {doing}: {str(error).splitlines()[0]}; start again, and see dmesg for Xid messages"
        ) from error
    except KernelError as error:
        raise EnginewrightError(f"the cuda engine failed {doing}: {error}") from error
