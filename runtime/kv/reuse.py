"""What a request takes over from others, and when its own blocks become theirs. Plans no step and holds no tensors."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from runtime.kv.block_pool import BlockPool
from runtime.kv.prefix_cache import Key, PrefixCache, block_key, common_len, root_key
from runtime.request import Request


class Found(NamedTuple):
    """What others have computed of a request's first tokens. At least its last token is left to compute.

    blocks: full blocks that it can share.
    source: a block whose first rows are what comes after those, to be copied; with `num_copied` of them.
    is_coming: all that is left but the last token is computed by the step being planned, and can be copied in the next.
    """

    blocks: list[int]
    source: int | None
    num_copied: int
    is_coming: bool

    def without_source(self) -> "Found":
        return self._replace(source=None, num_copied=0)


class _Candidate(NamedTuple):
    block: int
    token_ids: list[int]  # of its rows, once the step being planned has run
    num_ready: int  # rows written by earlier steps


class PrefixReuse:
    """Shares blocks between requests of one salt.

    A block can be shared as soon as the step that fills it is planned, even by a later row of that step: steps run in
    order, and a pass writes the keys and values of all its rows before any of them attends. A copy runs before the
    pass, so it takes only rows that earlier steps have written.
    """

    def __init__(self, pool: BlockPool, block_size: int, enabled: bool = True, keeps_open: bool = False) -> None:
        """keeps_open: whether `leave` keeps blocks that are not full. Where one holds a whole request, none ever is."""
        self.cache = PrefixCache(pool)
        self._keeps_open = keeps_open
        self._pool = pool
        self._block_size = block_size
        self._enabled = enabled
        self._rows: dict[Request, int] = {}  # requests of the step being planned, with the position their rows start at
        self._new: set[int] = set()  # blocks registered since the last step
        self._in_use: list[int] = []  # blocks that the step being planned reads for requests which do not hold them

    def find(self, request: Request, running: Iterable[Request]) -> Found:
        """Look for a waiting request's tokens. All of them are on the host."""
        if not self._enabled:
            return Found([], None, 0, False)
        limit = request.num_known - 1
        chain = self._chain(request, limit // self._block_size)
        blocks = self.cache.match(chain[1:])
        start = len(blocks) * self._block_size
        wanted = request.known_ids(start, min(self._block_size, limit - start))
        source, num_copied, num_coming = None, 0, 0
        for candidate in self._candidates(chain[len(blocks)], len(blocks), running):
            common = common_len(wanted, candidate.token_ids)
            num_coming = max(num_coming, common)
            if min(common, candidate.num_ready) > num_copied:
                source, num_copied = candidate.block, min(common, candidate.num_ready)
        is_coming = start + num_coming == limit and num_coming > num_copied
        return Found(blocks, source, num_copied, is_coming)

    def num_found(self, found: Found) -> int:
        """The tokens that a request need not compute."""
        return len(found.blocks) * self._block_size + found.num_copied

    def take(self, request: Request, found: Found) -> None:
        """Hold what was found for an admitted request; the source until the step is planned."""
        self._pool.share(found.blocks)
        request.blocks = list(found.blocks)
        request.num_published = len(found.blocks)
        request.num_computed = self.num_found(found)
        if found.source is not None:
            self._pool.share([found.source])
            self._in_use.append(found.source)
        if self._enabled and request.num_preemptions == 0:
            self.cache.count(request.num_known, request.num_computed)

    def plan(self, request: Request, start: int) -> None:
        """Note that the step being planned computes a request's tokens from `start` on; publish what it fills."""
        self._rows[request] = start
        self.publish(request)

    def publish(self, request: Request) -> None:
        """Register the blocks that are full of tokens known to the host and computed, or planned to be.

        Where another block has the same tokens already, the request goes over to it and its own is given back.
        """
        if not self._enabled:
            return
        num_full = request.num_settled // self._block_size
        if num_full <= request.num_published:
            return
        chain = self._chain(request, num_full)
        for index in range(request.num_published, num_full):
            other = self.cache.lookup(chain[index + 1])
            if other is None:
                token_ids = request.known_ids(index * self._block_size, self._block_size)
                self.cache.register(chain[index + 1], chain[index], token_ids, request.blocks[index])
                self._new.add(request.blocks[index])
            else:
                self._pool.share([other])
                self._in_use.append(request.blocks[index])
                request.blocks = [*request.blocks[:index], other, *request.blocks[index + 1 :]]
        request.num_published = num_full

    def leave(self, request: Request) -> None:
        """Register what a request that stops running has of others' use, before it releases its blocks."""
        self.publish(request)
        start = request.num_published * self._block_size
        num_open = request.num_settled - start
        if not (self._enabled and self._keeps_open and num_open > 0):
            return
        parent = self._chain(request, request.num_published)[-1]
        token_ids = request.known_ids(start, num_open)
        key = block_key(parent, token_ids)
        if self.cache.lookup(key) is None:
            self.cache.register(key, parent, token_ids, request.blocks[request.num_published])

    def end_step(self) -> None:
        """The step is planned: what its rows write counts as written for the next one."""
        self._pool.release(self._in_use)
        self._in_use.clear()
        self._rows.clear()
        self._new.clear()

    def check(self, running: Iterable[Request]) -> None:
        """Assert, between steps, that published blocks are shared under their keys and all others have one owner."""
        assert not any((self._in_use, self._rows, self._new)), "a step is still being planned"
        self.cache.check()
        for request in running:
            published = request.blocks[: request.num_published]
            assert published == self.cache.match(request.chain[1 : request.num_published + 1])
            assert len(published) * self._block_size <= request.num_settled
            for block in request.blocks[request.num_published :]:
                assert self._pool.ref_count(block) == 1, f"block {block} may be written by two owners"
                assert not self._pool.is_kept(block), f"block {block} is registered and may be written"

    def _candidates(self, parent: Key, index: int, running: Iterable[Request]) -> Iterator[_Candidate]:
        """Blocks that hold tokens after those of `parent`, `index` blocks deep: registered ones, and open ones."""
        for cached in self.cache.children(parent):
            yield _Candidate(cached.block, list(cached.token_ids), 0 if cached.block in self._new else self._block_size)
        start = index * self._block_size
        for other in running:
            if len(other.chain) > index and other.chain[index] == parent and index >= other.num_published:
                num_settled = other.num_settled
                num_ready = min(num_settled, self._rows.get(other, num_settled)) - start
                if num_settled > start:
                    token_ids = other.known_ids(start, min(self._block_size, num_settled - start))
                    yield _Candidate(other.blocks[index], token_ids, max(num_ready, 0))

    def _chain(self, request: Request, num_blocks: int) -> list[Key]:
        """A request's keys: the root's and those of its first `num_blocks` blocks, at least."""
        chain = request.chain
        if not chain:
            chain.append(root_key(request.cache_salt))
        while len(chain) <= num_blocks:
            start = (len(chain) - 1) * self._block_size
            chain.append(block_key(chain[-1], request.known_ids(start, self._block_size)))
        return chain[: num_blocks + 1]
