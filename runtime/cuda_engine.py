"""From a CUDA engine's folder to its backend: checks of this machine first, each with its remedy, then the load."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from plugins.cuda.archs import device_archs
from plugins.cuda.driver import driver
from plugins.cuda.errors import KernelError
from plugins.cuda.library import add_folder, has_image
from runtime.backends.cuda import CudaBackend, CudaLimits, make_cuda_backend
from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_FILE
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.kernel_list import KERNELS_DIR, KernelList
from runtime.kernels import step_sources
from runtime.spec import ModelSpec


def load_cuda_backend(
    checkpoint: Checkpoint, plan: EnginePlan, engine_dir: Path, draft_dir: Path | None = None
) -> CudaBackend:
    """Load a CUDA engine on torch's current device.

    draft_dir: a drafter that will be loaded beside it; one that has a KV cache of its own gets its share.

    Raises:
        EnginewrightError: no GPU or a lost one, another architecture, an old driver, a missing package, no memory.
    """
    require_gpu(KernelList.read(engine_dir))
    add_folder(engine_dir / KERNELS_DIR)
    limits = CudaLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.block_size, plan.num_blocks,
        plan.kv_cache_fraction * own_share(plan, checkpoint.spec, draft_dir),
    )  # fmt: skip
    dtype = getattr(torch, plan.dtype)
    whole_steps = step_sources(checkpoint.spec, dtype, plan.block_size)
    with gpu_errors("loading the engine"):
        return make_cuda_backend(checkpoint, dtype, limits, bool(whole_steps) and all(map(has_image, whole_steps)))


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


def own_share(plan: EnginePlan, spec: ModelSpec, draft_dir: Path | None) -> float:
    """The engine's part of the memory for KV caches, which a smaller model that drafts needs as well."""
    drafting = _draft_model(draft_dir)
    own = plan.block_bytes(spec)
    return own / (own + plan.block_bytes(drafting.spec)) if drafting else 1.0


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
    except torch.AcceleratorError as error:
        raise EnginewrightError(
            f"the GPU failed {doing}: {str(error).splitlines()[0]}; start again, and see dmesg for Xid messages"
        ) from error
    except KernelError as error:
        raise EnginewrightError(f"the cuda engine failed {doing}: {error}") from error
