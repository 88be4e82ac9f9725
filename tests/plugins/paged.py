"""Random requests over a paged cache that is poisoned wherever no request's keys lie, for tests of attention."""

from dataclasses import dataclass

import torch

POISON = (float("nan"), float("inf"), 3e4)


@dataclass
class PagedCase:
    """Arguments of `plan_attention` and `attention`, and which keys each query sees."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    query_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    ancestors: torch.Tensor | None

    def keys_of(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(context, N_kv, D) float64 each."""
        block_size = self.k_cache.shape[2]
        keys = torch.arange(int(self.context_lens[request]), device=self.q.device)
        blocks = self.block_tables[request][keys // block_size]
        return tuple(cache[blocks, :, keys % block_size].double() for cache in (self.k_cache, self.v_cache))

    def visible(self, request: int, window: int | None) -> torch.Tensor:
        """(rows, context) bool, by the words of `plan_attention`'s contract."""
        rows = int(self.query_starts[request + 1] - self.query_starts[request])
        context = int(self.context_lens[request])
        sees = torch.zeros(rows, context, dtype=torch.bool)
        root = context - rows
        positions = list(range(root, context))
        bits = None if self.ancestors is None else self.ancestors[request].tolist()
        is_tree = bits is not None and bits[0] != 0
        if is_tree:
            positions = [root + ((bits[i] % 2**64).bit_count() - 1) for i in range(rows)]
        for row in range(rows):
            keys = [j for j in range(rows) if bits[row] >> j & 1] if is_tree else list(range(row + 1))
            sees[row, [root + j for j in keys]] = True
            sees[row, :root] = True
            if window is not None:
                places = torch.tensor(list(range(root)) + positions)
                sees[row] &= places > positions[row] - window
        return sees.to(self.q.device)

    def expected(self, scale: float, window: int | None = None) -> torch.Tensor:
        """(T, N, D) float64."""
        out = torch.empty(self.q.shape, dtype=torch.float64, device=self.q.device)
        for request in range(len(self.context_lens)):
            first, end = int(self.query_starts[request]), int(self.query_starts[request + 1])
            if first == end:
                continue
            k, v = (x.repeat_interleave(self.q.shape[1] // x.shape[1], dim=1) for x in self.keys_of(request))
            scores = torch.einsum("tnd,snd->nts", self.q[first:end].double(), k) * scale
            hidden = ~self.visible(request, window)
            weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
            out[first:end] = torch.einsum("nts,snd->tnd", weights, v)
        return out


def make_case(
    query_lens, context_lens, *, num_heads, num_kv_heads, head_dim, block_size, dtype, device,
    ancestors=None, seed=0, spare_blocks=3,
):  # fmt: skip
    """Scatter random keys over random blocks; what is no request's key is NaN, infinite or large."""
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-length // block_size) for length in context_lens]
    order = torch.randperm(sum(blocks_of) + spare_blocks, generator=generator).tolist()
    tables = torch.full((len(context_lens), max([1, *blocks_of]) + 1), 10**9)  # past the last block: not to be read
    shape = (len(order), num_kv_heads, block_size, head_dim)
    poison = torch.tensor(POISON)[torch.randint(0, 3, shape, generator=generator)]
    k_cache, v_cache = poison.clone(), poison.clone()
    for request, length in enumerate(context_lens):
        for index in range(blocks_of[request]):
            block = tables[request, index] = order.pop()
            filled = min(block_size, length - index * block_size)
            for cache in (k_cache, v_cache):
                cache[block, :, :filled] = torch.randn(num_kv_heads, filled, head_dim, generator=generator)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    q = torch.randn(int(starts[-1]), num_heads, head_dim, generator=generator) * 2
    return PagedCase(
        q.to(device, dtype), k_cache.to(device, dtype), v_cache.to(device, dtype), starts.to(device),
        torch.tensor(context_lens, device=device), tables.to(device),
        None if ancestors is None else torch.tensor(ancestors, device=device),
    )  # fmt: skip


def random_tree(num_nodes, generator):
    """Ancestor bits of a random tree, as signed 64-bit integers; parents come before children."""
    bits = [1]
    for node in range(1, num_nodes):
        parent = int(torch.randint(0, node, (1,), generator=generator))
        bits.append(bits[parent] | 1 << node)
    return [value - 2**64 if value >= 2**63 else value for value in bits]
