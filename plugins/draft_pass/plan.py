"""How a draft pass is laid out on a GPU: what each block does and keeps in shared memory; or why there is none."""

from typing import NamedTuple

import torch

MOST_ROWS = 128  # beams of all requests together
MOST_DIRECT, SUMMARY_BLOCKS = 4, 128  # see direct.cuh
_TILE_ROWS, _STEP_COLUMNS, _WARPS, _THREADS = 16, 32, 12, 384
_MOST_RESIDENT, _BARRIER_BYTES = 64, 512
_SELECT_FIXED_BYTES, _HELD_BYTES = 22 * 1024, 2 * 64 * 16
_MOST_SUMMARISED = 256  # tokens: 8 of each lane
_DIRECT_BYTES = 8 * _WARPS * MOST_DIRECT + 4 * MOST_DIRECT
_PARTIAL_PITCH = _TILE_ROWS + 4
_CHAIN_SHARE = 0.3  # of the multiprocessors at most: they read a third of what all could
_FEWEST_PROCESSORS = 8
_MOST_TOKENS = 1 << 26  # a beam's word holds token and beam
_MOST_DRAFTED = 1 << 24  # a rank holds beam and entry


class HeadSizes(NamedTuple):
    """See `DraftWeights`."""

    hidden_size: int
    exit_dim: int
    num_blocks: int
    num_draft: int  # V_draft
    vocab_size: int


class PassSizes(NamedTuple):
    """What one launch drafts: B requests, trees of N nodes from W beams over K steps."""

    requests: int
    num_nodes: int
    num_beams: int
    depth: int

    @property
    def rows(self) -> int:
        """Beams of all requests."""
        return self.requests * self.num_beams

    @property
    def num_candidates(self) -> int:
        """C, of one depth."""
        return max(self.num_beams, self.num_nodes - 1)


class PassPlan(NamedTuple):
    """A launch. Blocks are those of the chain, those that select, and those of the LM head, in this order."""

    group_rows: int  # rows of one product: 8 or 16
    chain_blocks: int
    select_blocks: int
    chain_resident: int  # tiles of weights that a block keeps in shared memory
    head_resident: int
    is_direct: int  # 1 where the blocks of the chain choose the beams: see direct.cuh
    shared_bytes: int


class Device(NamedTuple):
    """What a plan needs to know of a GPU."""

    processors: int
    shared_bytes: int  # that a block may have


def head_refusal(head: HeadSizes, dtype: torch.dtype) -> str | None:
    """Return why no draft pass can run this head, or None where it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its dtype is {dtype}; the draft pass computes in bfloat16 or float16"
    for name in ("hidden_size", "exit_dim"):
        if getattr(head, name) % _STEP_COLUMNS:
            return f"{name} is {getattr(head, name)}; the draft pass takes multiples of {_STEP_COLUMNS}"
    if head.vocab_size > _MOST_TOKENS:
        return f"vocab_size is {head.vocab_size}; the draft pass takes up to {_MOST_TOKENS} tokens"
    if head.num_draft > _MOST_DRAFTED - _TILE_ROWS:
        return f"{head.num_draft} drafted tokens; the draft pass takes up to {_MOST_DRAFTED - _TILE_ROWS}"
    return None


def plan_pass(head: HeadSizes, sizes: PassSizes, device: Device) -> PassPlan | str:
    """Lay out a launch; a string is the reason why there is none."""
    if sizes.rows > MOST_ROWS:
        return f"{sizes.requests} requests with {sizes.num_beams} beams; the draft pass takes {MOST_ROWS} beams in all"
    if head.num_draft < sizes.num_candidates:
        return f"{head.num_draft} drafted tokens; trees of {sizes.num_nodes} nodes need {sizes.num_candidates}"
    if device.processors < _FEWEST_PROCESSORS:
        return f"{device.processors} multiprocessors; the draft pass needs {_FEWEST_PROCESSORS}"
    group_rows = 8 if sizes.rows <= 8 else 16
    widest = max(head.hidden_size, head.exit_dim)
    chain_tiles = widest // _TILE_ROWS
    chain_blocks = min(chain_tiles, int(_CHAIN_SHARE * device.processors))
    select_blocks = min(sizes.requests, max(1, (device.processors - chain_blocks) // 8))
    head_blocks = device.processors - chain_blocks - select_blocks
    chain_own, head_own = -(-chain_tiles // chain_blocks), -(-_num_tiles(head) // head_blocks)
    is_direct = _is_direct(sizes, min(head_blocks, _num_tiles(head)), head_own)
    chain_fixed = _chain_bytes(head, sizes, group_rows, chain_own)
    kept_rows = sizes.requests + (MOST_DIRECT + 1) * is_direct
    head_fixed = group_rows * _row_pitch(head.exit_dim) + 4 * _TILE_ROWS * head_own * kept_rows
    select_bytes = _select_bytes(head, sizes, -(-sizes.requests // select_blocks))
    room = device.shared_bytes - _BARRIER_BYTES
    if max(chain_fixed, head_fixed) > room or select_bytes > device.shared_bytes:
        most = max(chain_fixed + _BARRIER_BYTES, head_fixed + _BARRIER_BYTES, select_bytes)
        return f"{sizes.requests} requests with {sizes.num_beams} beams need {most} bytes of shared memory; here a " \
               f"block has {device.shared_bytes}"  # fmt: skip
    chain_resident = min((room - chain_fixed) // (32 * widest), chain_own * (3 + head.num_blocks), _MOST_RESIDENT)
    head_resident = min((room - head_fixed) // (32 * head.exit_dim), head_own, _MOST_RESIDENT)
    shared_bytes = max(
        _BARRIER_BYTES + chain_fixed + 32 * widest * chain_resident,
        _BARRIER_BYTES + head_fixed + 32 * head.exit_dim * head_resident,
        select_bytes,
    )
    return PassPlan(group_rows, chain_blocks, select_blocks, chain_resident, head_resident, is_direct, shared_bytes)


def _is_direct(sizes: PassSizes, summaries: int, own_tiles: int) -> int:
    """Whether a warp has a row of a block of the LM head, and a lane what one says of it; one request, few beams."""
    if sizes.requests > 1 or sizes.num_beams > MOST_DIRECT:
        return 0
    return int(summaries <= 32 * (_WARPS // sizes.num_beams) and own_tiles * _TILE_ROWS <= _MOST_SUMMARISED)


def _chain_bytes(head: HeadSizes, sizes: PassSizes, group_rows: int, own_tiles: int) -> int:
    """Shared memory of a block of the chain beside barriers and weights: see chain.cuh."""
    warps = max(_warps_with_steps(head.hidden_size), _warps_with_steps(head.exit_dim))
    partials = 3 * warps * group_rows * _PARTIAL_PITCH
    return 4 * (partials + own_tiles * (sizes.rows + 2 * sizes.requests) * _TILE_ROWS) + _DIRECT_BYTES


def _select_bytes(head: HeadSizes, sizes: PassSizes, own_requests: int) -> int:
    """Shared memory of a block that selects: see select.cuh."""
    shares = [_shares(width, _num_tiles(head), sizes.num_candidates) for width in (1, sizes.num_beams)]
    listed = max(min(sizes.num_candidates * share.tiles_of_group, share.all_tiles) for share in shares)
    most_shares = max(share.number for share in shares)
    maxima = 4 * sizes.num_beams * _num_tiles(head)
    return _SELECT_FIXED_BYTES + _HELD_BYTES * own_requests + 8 * listed + 8 * most_shares + maxima


class _Shares(NamedTuple):
    number: int
    tiles_of_group: int
    all_tiles: int


def _shares(width: int, num_tiles: int, num_candidates: int) -> _Shares:
    """As Shares of select.cuh."""
    parts = 8
    while parts > 1 and width * parts > 8:
        parts //= 2
    count, bits = width * parts * 32, 0
    while bits < 4 and min(count, _THREADS) >> bits >> 1 >= num_candidates + num_candidates // 2:
        bits += 1
    tiles = -(-num_tiles // (32 * parts))
    return _Shares(count, (-(-count // _THREADS) * tiles) << bits, width * num_tiles)


def _num_tiles(head: HeadSizes) -> int:
    return -(-head.num_draft // _TILE_ROWS)


def _warps_with_steps(columns: int) -> int:
    steps = columns // _STEP_COLUMNS
    return -(-steps // -(-steps // _WARPS))


def _row_pitch(columns: int) -> int:
    return -(-columns * 2 // 128) * 128 + 64
