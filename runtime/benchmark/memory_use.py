"""What an engine's memory is for."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from runtime.backends.torch_backend import TorchBackend


@dataclass(frozen=True)
class MemoryUse:
    """Bytes. weights: as they lie in memory, packed or not. workspace: what else tensors hold, requests' state and
    kernels' scratch. graphs: what captured passes keep between replays. allocator: held by torch for later. driver:
    the rest of what the GPU has in use: context, kernels, other processes. None where it cannot be told, as on the CPU.
    """

    weights: int
    kv: int
    workspace: int | None = None
    graphs: int | None = None
    allocator: int | None = None
    driver: int | None = None


def memory_use(backend: TorchBackend) -> MemoryUse:
    """Of an engine that has run."""
    weights, kv = weight_bytes(backend), backend.cache.num_bytes
    if backend.device.type != "cuda":
        return MemoryUse(weights, kv)
    torch.cuda.synchronize()
    segments = torch.cuda.memory_snapshot()
    graphs = sum(each["total_size"] for each in segments if tuple(each["segment_pool_id"]) != (0, 0))
    allocated = sum(each["allocated_size"] for each in segments if tuple(each["segment_pool_id"]) == (0, 0))
    reserved = sum(each["total_size"] for each in segments)
    free, total = torch.cuda.mem_get_info()
    return MemoryUse(
        weights, kv, allocated - weights - kv, graphs, reserved - graphs - allocated, total - free - reserved
    )  # fmt: skip


def weight_bytes(backend: TorchBackend) -> int:
    """Of all tensors that the decoder holds, shared ones once."""
    sizes: dict[int, int] = {}
    for tensor in _tensors(backend.decoder, set()):
        key = id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()
        sizes[key] = tensor.numel() * tensor.element_size() if tensor.is_mkldnn else tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def _tensors(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Depth first through attributes, lists and mappings."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif id(thing) not in seen:
        seen.add(id(thing))
        if isinstance(thing, dict):
            parts = list(thing.values())
        elif isinstance(thing, list | tuple):
            parts = list(thing)
        elif is_dataclass(thing):
            parts = [getattr(thing, field.name) for field in fields(thing)]
        else:
            parts = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
        for part in parts:
            yield from _tensors(part, seen)
