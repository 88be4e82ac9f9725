"""What the host decides of an attention launch from shapes alone: kernels' configurations, grids and workspace."""

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from plugins.attention import AttentionShape

# Where contexts are cut, in keys. A row's result depends on it, so it is the same for every batch.
# (keys of a split, keys that the rule holds for): short at first, since one request alone is to keep the GPU busy.
SPLITS = ((256, 2048), (512, 32768), (1024, 2**31))
FOLD_BATCH = 8  # splits; attention_fold.cuh
SHORT_ROWS = 64  # tokens; SHORT_ROWS of attention_plan.cuh
WORKSPACE_BYTES = 128 << 20  # of splits' results; where they would not fit, the step's splits are longer
PREFILL_HEAD_DIMS = (64, 128)
PREFILL_KEYS = 128  # of a tile; attention_prefill.cuh
_LARGE_SHARED = ((9, 0), (10, 0))  # LARGE of attention.cu
_FEW_TREES = 2
_MOST_KEYS = 2**31 - 1


class Variant(NamedTuple):
    """An entry point of attention.cu and its AttentionConfig."""

    entry: str
    key_warps: int
    row_warps: int
    warp_rows: int
    chunk: int
    stages: int

    @property
    def rows(self) -> int:
        return self.row_warps * self.warp_rows

    @property
    def threads(self) -> int:
        return 32 * self.key_warps * self.row_warps

    def shared_bytes(self, head_dim: int) -> int:
        row_bytes = 2 * head_dim + 16
        ring = self.key_warps * self.stages * 2 * self.chunk * row_bytes
        columns = head_dim if self.rows <= 16 else 32
        merge = self.key_warps * self.rows * (columns + (4 if self.warp_rows == 8 else 8) + 2) * 4
        if self.key_warps == 1:
            return self.rows * row_bytes + ring
        return self.rows * row_bytes + max(ring, merge) + 16


class PrefillVariant(NamedTuple):
    """The entry point of attention_prefill.cu and its PrefillConfig."""

    entry: str
    consumers: int
    stages: int

    @property
    def rows(self) -> int:
        return 64 * self.consumers

    @property
    def threads(self) -> int:
        return 128 * (self.consumers + 1)

    def shared_bytes(self, head_dim: int) -> int:
        return (self.rows + 2 * self.stages * PREFILL_KEYS) * 2 * head_dim + 256


Kinds = list[Variant | PrefillVariant]


def prefill_variant(head_dim: int) -> PrefillVariant:
    """The configuration of attention_prefill.cu, for one of PREFILL_HEAD_DIMS."""
    return PrefillVariant("attention_prefill_kernel", *((3, 4) if head_dim == 64 else (2, 2)))


def has_wgmma(device: torch.device) -> bool:
    """Whether the device runs sm_90a's code."""
    return torch.cuda.get_device_capability(device) == (9, 0)


def has_large_shared(device: torch.device) -> bool:
    """Whether the images for this device are of attention.cu's large configurations."""
    return torch.cuda.get_device_capability(device) in _LARGE_SHARED


def variants(head_dim: int, device: torch.device) -> Kinds:
    """The configurations of attention.cu, the narrowest first; the last is for requests of more than SHORT_ROWS."""
    large, wide = has_large_shared(device), head_dim > 128
    key_warps = 2 if wide else 4
    stages = 2 if wide or (head_dim > 96 and not large) else 3
    warp_rows = 16 if wide else 32
    chunk = 64 if large or head_dim <= 96 else 16 if wide else 32
    return [
        Variant("attention_decode_kernel", key_warps, 1, 8, 16, stages),
        Variant("attention_group_kernel", key_warps, 1, 16, 16, stages),
        Variant("attention_small_tree_kernel", key_warps, 2, 16, 16, 2),
        Variant("attention_tree_kernel", key_warps, 2, warp_rows, 16, 2),
        Variant("attention_chunk_kernel", 1, 8 if wide else 4, warp_rows, chunk, 2),
    ]


class Layout(NamedTuple):
    """The host's part of a plan, as it travels in the plan's last tensor. What cannot be counted is bounded."""

    num_tokens: int
    num_heads: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    window: int
    short_variant: int  # of `variants`, for the short requests
    short_tiles: int
    short_items: int  # tiles x splits
    long_tiles: int
    num_slots: int  # (token, split) pairs of the workspace
    tile_counters: int  # of each tile and K/V head
    prefill: bool  # whether attention_prefill.cu takes the long requests


def most_splits(context: int) -> int:
    """How many splits a context of so many keys has."""
    splits, start = 0, 0
    for keys, end in SPLITS:
        splits += -(-max(min(context, end) - start, 0) // keys)
        start = end
    return splits


def plan_layout(
    shape: "AttentionShape",
    kinds: Kinds,
    num_requests: int,
    max_blocks: int,
    num_nodes: int,
    num_tokens: int,
    max_query_len: int | None,
) -> Layout:
    """Bound a step's work; see plan_attention for the arguments."""
    group = shape.num_heads // shape.num_kv_heads
    longest = min(num_tokens, max_query_len or num_tokens)
    # Beside long prompts the other rows decode; a batch without trees that is wide may be such a batch.
    mean_rows = group if num_nodes == 0 and longest > SHORT_ROWS else -(-num_tokens // max(num_requests, 1)) * group
    # Few trees keep more of the GPU busy in smaller tiles; many read their keys fewer times in larger ones.
    largest = 2 if num_nodes > 0 and num_requests <= _FEW_TREES else 3
    short_variant = next((i for i, kind in enumerate(kinds[:2]) if mean_rows <= kind.rows), largest)
    short_tokens = min(num_tokens, SHORT_ROWS * num_requests)
    short_tiles = short_tokens * group // kinds[short_variant].rows + min(num_requests, short_tokens)
    splits = most_splits(max_blocks * shape.block_size)
    if shape.sliding_window is not None:
        splits = min(splits, (shape.sliding_window + SHORT_ROWS) // SPLITS[0][0] + 2)
    batches = -(-splits // FOLD_BATCH) + (shape.sliding_window is not None)  # a window may begin within one
    slot_bytes = shape.num_heads * (shape.head_dim + 4) * 4
    num_slots = min(short_tokens * splits, WORKSPACE_BYTES // slot_bytes) if splits > 1 else 0
    long_tiles = 0
    if longest > SHORT_ROWS:
        long_tiles = num_tokens * group // kinds[-1].rows + min(num_requests, num_tokens // SHORT_ROWS)
    window = _MOST_KEYS if shape.sliding_window is None else shape.sliding_window
    return Layout(
        num_tokens, shape.num_heads, shape.num_kv_heads, shape.block_size, shape.head_dim, window,
        short_variant, short_tiles, short_tiles * splits, long_tiles, num_slots, 1 + batches if batches > 1 else 1,
        isinstance(kinds[-1], PrefillVariant),
    )  # fmt: skip
