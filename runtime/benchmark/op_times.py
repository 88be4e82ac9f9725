"""Whose time a pass is, by torch's profiler: kernels on a GPU, operations on the CPU, under the names of our ops."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

OTHER, COPIES = "other torch operations", "copies"
_PRODUCTS = re.compile(r"gemm|gemv|nvjet|cutlass|cublas|splitk|skinny|linear|aten::mm|matmul|addmm", re.IGNORECASE)
_COPY = re.compile(r"^Mem(cpy|set)|aten::(copy_|_to_copy|to|clone|contiguous)$")
_OPS = (
    "decoder_step", "attention", "rope_kv_write", "silu_mul", "sample", "place_tokens", "emit_tokens", "kv_compact",
    "kv_copy_blocks", "tree_pack", "draft_select", "accept",
)  # fmt: skip


@dataclass(frozen=True)
class OpTime:
    """Of all calls together."""

    calls: int
    seconds: float


def op_of(name: str) -> str:
    """The op that a kernel or a torch operation belongs to."""
    plain = name.removeprefix("enginewright::")
    if "rms_norm" in plain:
        return "rms_norm"
    if plain.startswith(("layer_", "rows_begin", "rows_end")):
        return "layer_step"
    if found := next((op for op in _OPS if plain.startswith(op)), None):
        return found
    return "linear" if _PRODUCTS.search(plain) else COPIES if _COPY.search(plain) else OTHER


def profiled(run: Callable[[], object], device: torch.device) -> Mapping[str, OpTime]:
    """Run it once under the profiler: op -> its share, longest first. Overlapping kernels count in full each."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds) as profile:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return times_of(_counted(profile.events(), device))


def times_of(events: list[tuple[str, float]]) -> Mapping[str, OpTime]:
    """(name, seconds) of each event -> op -> calls and seconds, longest first."""
    calls: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for name, each in events:
        calls[op_of(name)] += 1
        seconds[op_of(name)] += each
    return {op: OpTime(calls[op], seconds[op]) for op in sorted(seconds, key=lambda op: -seconds[op])}


def _counted(events: Any, device: torch.device) -> list[tuple[str, float]]:
    """Kernels and copies of a GPU; on the CPU operations that no other one called."""
    if device.type == "cuda":
        return [(each.name, each.device_time_total / 1e6) for each in events if each.device_type.name == "CUDA"]
    return [(each.name, each.cpu_time_total / 1e6) for each in events if each.cpu_parent is None]
