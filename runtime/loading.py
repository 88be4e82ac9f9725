"""From files to a running engine."""

from functools import partial
from pathlib import Path

import torch

from runtime.backends.base import Backend, EngineLimits
from runtime.backends.gpu_errors import gpu_errors
from runtime.backends.torch_backend import TorchBackend
from runtime.device_costs import device_key, load_or_measure
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_FILE
from runtime.formats.checkpoint import CONFIG_FILE, Checkpoint
from runtime.formats.digest import sha256_file
from runtime.formats.engine_plan import ENGINE_FILE, EnginePlan
from runtime.formats.kernel_list import KERNELS_FILE
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.pacing import measuring
from runtime.pacing.costs import ChunkCosts
from runtime.pacing.pace import Pace, parse_ratio
from runtime.speculation.cost_table import CostTable
from runtime.speculation.costs import is_current, measure_backend
from runtime.speculation.drafter import Drafter
from runtime.speculation.loading import Drafting, LoadedDrafter, SpeculationOptions, load_drafter
from runtime.speculation.policy import FixedPolicy, SpeculationPolicy, TreePolicy, parse_speculation
from runtime.speculation.redrafter.head_file import HEAD_FILE
from runtime.text.tokenizer import Tokenizer

_NO_SPECULATION = SpeculationOptions(mode="off")


def load_engine(
    checkpoint: Checkpoint,
    engine_dir: Path,
    tokenizer: Tokenizer,
    draft_dir: Path | None = None,
    speculation: SpeculationOptions = _NO_SPECULATION,
    prefix_reuse: bool = True,
    itl_ratio: str = "off",
    bundle: Path | None = None,
) -> Engine:
    """Load the engine that `engine_dir` describes over a checkpoint's weights, with the drafter of `draft_dir`.

    Args:
        speculation: its `costs_dir` keeps what is measured for `itl_ratio` too.
        prefix_reuse: see `Engine`.
        itl_ratio: how much longer a step with prompts may take than its decodes alone: a number above 1, `auto`, `off`.
        bundle: its folder, where it may say what was measured on this device.

    Raises:
        EnginewrightError: a damaged file, or a plan or drafter that this machine cannot run.
    """
    parse_ratio(itl_ratio, "cpu")  # a mistake fails before the weights are read
    backend = load_backend(checkpoint, engine_dir, draft_dir, bundle)
    backend.drafter, policy = load_drafting(backend, checkpoint, engine_dir, draft_dir, speculation)
    pace = _pace(backend, engine_dir, draft_dir, itl_ratio, speculation.costs_dir)
    return Engine(backend, tokenizer.eos_token_ids, policy, prefix_reuse, pace=pace)


def load_drafting(
    backend: Backend, checkpoint: Checkpoint, engine_dir: Path, draft_dir: Path | None, speculation: SpeculationOptions
) -> Drafting:
    """Load the drafter that the options ask for and, for `auto`, measure what it costs on the idle backend.

    Raises:
        EnginewrightError: a damaged drafter, or one that this machine cannot run.
    """
    plan = EnginePlan.read(engine_dir)
    if plan.target == "cuda":  # what the load counted, and the block that padding writes to
        plan = plan.with_blocks(backend.limits.num_blocks + 1)
    with gpu_errors("loading the drafter"):
        loaded = load_drafter(speculation, draft_dir, checkpoint, plan, str(backend.device), engine_dir)
        if loaded is None:
            return Drafting(None, None)
        digests = (_engine_digest(engine_dir, backend), _drafter_digest(draft_dir, loaded.drafter))
        return Drafting(loaded.drafter, _policy(backend, loaded, speculation, digests))


def load_backend(
    checkpoint: Checkpoint, engine_dir: Path, draft_dir: Path | None = None, bundle: Path | None = None
) -> TorchBackend:
    """Build the backend that an engine's folder describes, of whichever target.

    bundle: see `load_engine`.

    Raises:
        EnginewrightError: a damaged plan, or one that this machine cannot run.
    """
    plan = EnginePlan.read(engine_dir)
    if plan.target == "cuda":
        from runtime.cuda_engine import make_cuda_backend

        return make_cuda_backend(checkpoint, plan, engine_dir, draft_dir, bundle)
    if plan.target == "onnx":
        from runtime.onnx_engine import make_onnx_backend

        return make_onnx_backend(checkpoint, plan, engine_dir)
    if plan.target in ("tensorrt_rtx", "tensorrt"):
        from runtime.tensorrt_engine import make_plan_backend

        return make_plan_backend(checkpoint, plan, engine_dir)
    return make_backend(checkpoint, plan)


def make_backend(
    checkpoint: Checkpoint,
    plan: EnginePlan,
    drafter: Drafter | None = None,
    read_lag: int = 0,
    device: str = "cpu",
    most_repeats: int = 1,
) -> TorchBackend:
    """Build the backend of a plan; `read_lag` and `most_repeats` are what one uses on a device that runs ahead."""
    dtype = getattr(torch, plan.dtype)
    try:
        decoder = Decoder(checkpoint, dtype, plan.linear, plan.max_seq_len, device)
    except ValueError as error:
        raise EnginewrightError(
            f"this machine cannot run the engine: {error}; rebuild it with target.cpu.linear=torch"
        ) from error
    cache = KVCache(checkpoint.spec, plan.num_blocks, plan.block_size, dtype, device)
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    return TorchBackend(decoder, cache, limits, drafter, read_lag, most_repeats)


def _policy(
    backend: Backend, loaded: LoadedDrafter, speculation: SpeculationOptions, digests: tuple[str, str]
) -> TreePolicy:
    """A fixed tree as asked for, or the choice by measured costs."""
    mode = parse_speculation(speculation.mode)
    if not isinstance(mode, str):
        return FixedPolicy(mode)

    def measure() -> CostTable:
        return measure_backend(backend, loaded.drafter, loaded.candidates)

    key = device_key(backend.device, engine=digests[0], drafter=digests[1])
    costs = load_or_measure(
        speculation.costs_dir, key, CostTable.from_fields, measure, lambda table: is_current(backend, table)
    )
    return SpeculationPolicy(costs, loaded.candidates, loaded.prior, backend.limits.max_num_tokens)


def _pace(
    backend: Backend, engine_dir: Path, draft_dir: Path | None, itl_ratio: str, folder: Path | None
) -> Pace | None:  # fmt: skip
    """By costs that are measured on the idle backend, or were before; None where steps last as long as they may."""
    ratio = parse_ratio(itl_ratio, backend.device.type)
    limits = backend.limits
    if ratio is None or min(limits.max_batch_size, limits.max_num_tokens) < 2:  # no step has two requests
        return None
    drafter = _drafter_digest(draft_dir, backend.drafter) if backend.drafter else "none"
    key = device_key(backend.device, engine=_engine_digest(engine_dir, backend), beside_prompts=drafter)
    with gpu_errors("measuring steps"):
        costs = load_or_measure(
            folder, key, ChunkCosts.from_fields, partial(measuring.measure_backend, backend),
            partial(measuring.is_current, backend),
        )  # fmt: skip
    return Pace(costs, ratio)


def _engine_digest(engine_dir: Path, backend: Backend) -> str:
    """Of what an engine's cost depends on: its plan, its kernels and which of them it takes."""
    files = [path for name in (ENGINE_FILE, KERNELS_FILE) if (path := engine_dir / name).is_file()]
    return " ".join([*map(sha256_file, files), backend.variant]).strip()


def _drafter_digest(draft_dir: Path | None, drafter: Drafter) -> str:
    """Of what a drafter's cost depends on: its kind, and the sizes of its head or of the smaller model."""
    if draft_dir is None:
        return drafter.name
    files = [path for name in (DRAFT_FILE, HEAD_FILE, CONFIG_FILE) if (path := draft_dir / name).is_file()]
    return " ".join([drafter.name, *map(sha256_file, files)])
