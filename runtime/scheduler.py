"""Which requests run in the next step, with how many tokens and over which blocks. Knows no tensors and no text."""

from collections import deque

from runtime.backends.base import EngineLimits
from runtime.batch import PlanRow
from runtime.kv.block_pool import BlockPool
from runtime.request import FinishReason, Request


class Scheduler:
    """Continuous batching, first come first served.

    Each step gives every running request its pending tokens, within the token budget; a long prompt is computed in
    chunks beside other requests' decode steps. When blocks run out, the request admitted last gives its own back and
    waits at the front of the queue; what it had is computed again later.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.pool = BlockPool(limits.num_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission
        self._limits = limits
        self._free_slots = list(range(limits.max_batch_size))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self) -> list[tuple[Request, PlanRow]]:
        """Plan one step; an empty plan means that nothing can run before a step in flight is read."""
        plan: list[tuple[Request, PlanRow]] = []
        budget = self._limits.max_num_tokens
        for request in list(self.running):
            count = min(request.num_pending, budget)
            if count and request.slot is not None and self._make_room(request, request.num_computed + count):
                plan.append((request, self._advance(request, count)))
                budget -= count
        while budget and self._can_admit():
            request = self._admit()
            count = min(request.num_pending, budget)
            plan.append((request, self._advance(request, count)))
            budget -= count
        return plan

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in any state and take its blocks back at once. Ending it twice does nothing.

        A step still in flight may write to those blocks; later steps of the same device run after it.
        """
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request.slot is None:
            self.waiting.remove(request)
        else:
            self._stop_running(request)

    def check(self) -> None:
        """Assert that blocks and slots are owned by running requests exactly once, and none has leaked."""
        self.pool.check()
        owned = [block for request in self.running for block in request.blocks]
        assert len(owned) == len(set(owned)) == self.pool.num_blocks - self.pool.num_free
        slots = [request.slot for request in self.running] + self._free_slots
        assert sorted(slot for slot in slots if slot is not None) == list(range(self._limits.max_batch_size))
        assert all(not request.blocks and request.slot is None for request in self.waiting)

    def _advance(self, request: Request, count: int) -> PlanRow:
        """Plan the next `count` tokens of a request whose blocks reach that far."""
        assert request.slot is not None
        start = request.num_computed
        emits = start + count == request.num_tokens
        row = PlanRow(
            request.slot, request.pending_ids(count), start, count, request.blocks, emits, request.params.logprobs
        )
        request.num_computed += count
        request.num_in_flight += emits
        return row

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Grow a running request's blocks to `num_tokens`, preempting later ones; False if it had to go itself."""
        missing = self._num_blocks(num_tokens) - len(request.blocks)
        while not self.pool.can_allocate(missing):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.blocks.extend(self.pool.allocate(missing))
        return True

    def _can_admit(self) -> bool:
        """Whether the first waiting request has a slot, all its tokens on the host and blocks for them."""
        if not self.waiting or not self._free_slots:
            return False
        request = self.waiting[0]
        return request.num_in_flight == 0 and self.pool.can_allocate(self._num_blocks(request.num_tokens))

    def _admit(self) -> Request:
        request = self.waiting.popleft()
        request.slot = self._free_slots.pop()
        request.blocks = self.pool.allocate(self._num_blocks(request.num_tokens))
        self.running.append(request)
        return request

    def _preempt(self, request: Request) -> None:
        self._stop_running(request)
        request.num_computed = 0
        request.num_preemptions += 1
        self.waiting.appendleft(request)

    def _stop_running(self, request: Request) -> None:
        assert request.slot is not None
        self.running.remove(request)
        self.pool.release(request.blocks)
        self._free_slots.append(request.slot)
        request.blocks, request.slot = [], None

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._limits.block_size)
