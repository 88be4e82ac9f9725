"""How a model's step is laid out on a multiprocessor: what the kernel is compiled with, or why it cannot be."""

from typing import NamedTuple

import torch

from plugins.decoder_step.weights import StepSpec

MAX_ROWS = 32
SHARED_BYTES = 227 * 1024  # that a block may have from sm_90 on
_SCRATCH_BUDGET = 96 * 1024  # of which activations may take this much where a model's longest rows fit
_FEWEST_STAGES = 3
_WARPS = 8


class StepPlan(NamedTuple):
    """Compile-time choices of the kernel, by the names of its macros' sizes in shape.cuh."""

    rows: int
    stages: int
    chunk: int
    panel: int
    split_keys: int


def plan_step(spec: StepSpec, rows: int, limit_bytes: int = SHARED_BYTES, split_keys: int = 128) -> StepPlan | str:
    """Lay out a step of at most `rows` rows; a string is the reason why the kernel cannot take it."""
    columns = {"hidden_size": spec.hidden_size, "num_heads * head_dim": spec.num_heads * spec.head_dim,
               "intermediate_size": spec.intermediate_size}  # fmt: skip
    for name, value in columns.items():
        if value % 32:
            return f"{name} is {value}; the whole-step kernel takes columns 32 at a time"
    if spec.head_dim % 16 or spec.head_dim > 256:
        return f"head_dim is {spec.head_dim}; the whole-step kernel takes multiples of 16 up to 256"
    if not 1 <= rows <= MAX_ROWS:
        return f"a step of {rows} rows; the whole-step kernel takes 1 to {MAX_ROWS}"
    chunk = spec.hidden_size if spec.hidden_size <= 640 else 512
    panel = _round_up(max(columns.values()), chunk)
    if rows * _row_pitch(panel) > _SCRATCH_BUDGET:
        panel = _round_up(spec.hidden_size, chunk)
    fixed = _fixed_bytes(spec, rows, panel)
    stages = min((limit_bytes - fixed) // (16 * _row_pitch(chunk) + 16), 16)
    if stages < _FEWEST_STAGES:
        return f"{rows} rows of hidden size {spec.hidden_size} leave no room in shared memory for weights"
    return StepPlan(rows, stages, chunk, panel, split_keys)


def supports(spec: StepSpec, dtype: torch.dtype, rows: int = 1) -> str | None:
    """Return why the whole-step kernel cannot run this model, or None where it can."""
    if dtype != torch.bfloat16:
        return f"dtype is {dtype}; the whole-step kernel computes in bfloat16"
    plan = plan_step(spec, rows)
    return plan if isinstance(plan, str) else None


def defines(spec: StepSpec, plan: StepPlan, block_size: int) -> dict[str, str]:
    """The kernel's macros."""
    values = {
        "MODEL_LAYERS": spec.num_layers, "MODEL_HIDDEN": spec.hidden_size, "MODEL_HEADS": spec.num_heads,
        "MODEL_KV_HEADS": spec.num_kv_heads, "MODEL_HEAD_DIM": spec.head_dim,
        "MODEL_INTERMEDIATE": spec.intermediate_size, "MODEL_VOCAB": spec.vocab_size,
        "MODEL_QKV_BIAS": int(spec.qkv_bias), "MODEL_QK_NORM": int(spec.qk_norm),
        "MODEL_WINDOW": spec.sliding_window or 0, "CACHE_BLOCK_SIZE": block_size, "ROWS": plan.rows,
        "RING_STAGES": plan.stages, "RING_CHUNK": plan.chunk, "ACTIVATION_PANEL": plan.panel,
        "ATTENTION_SPLIT": plan.split_keys, "LAUNCH_SHARED_BYTES": shared_bytes(spec, plan),
    }  # fmt: skip
    return {name: str(value) for name, value in values.items()}


def shared_bytes(spec: StepSpec, plan: StepPlan) -> int:
    """Shared memory that a block of the kernel is launched with."""
    return _fixed_bytes(spec, plan.rows, plan.panel) + plan.stages * (16 * _row_pitch(plan.chunk) + 16)


def _fixed_bytes(spec: StepSpec, rows: int, panel: int) -> int:
    """Shared memory besides the ring: see decoder_step.cuh."""
    query_rows = min(16, rows * spec.num_heads // spec.num_kv_heads)
    attention = (16 + 2 * rows) * _row_pitch(spec.head_dim) + _WARPS * query_rows * (spec.head_dim * 4 + 24) + 16
    scratch = _round_up(max(rows * _row_pitch(panel), attention), 128)
    partials = 2 * rows * _WARPS * 16 * 4
    table = 80 * spec.num_layers
    return scratch + partials + 2 * _WARPS * rows * 4 + 32 * rows + table + 64


def _row_pitch(columns: int) -> int:
    return _round_up(columns * 2, 128) + 64


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
