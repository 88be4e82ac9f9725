"""Which requests run in the next step, with how many tokens and over which blocks. Knows no tensors and no text."""

from collections import Counter, deque
from typing import NamedTuple

from runtime.backends.base import EngineLimits
from runtime.batch import PlanRow, StepPlan
from runtime.kv.block_pool import BlockPool
from runtime.kv.reuse import Found, PrefixReuse
from runtime.pacing.pace import Pace
from runtime.request import FinishReason, Request
from runtime.speculation.tree import TreeShape


class Schedule(NamedTuple):
    """One step: `requests[i]` has `plan.rows[i]`; empty where nothing can run before a step in flight is read."""

    requests: list[Request]
    plan: StepPlan
    admitted: list[Request]  # those that got a slot in this step


class Scheduler:
    """Continuous batching, first come first served.

    Each step gives every running request its pending tokens, within the token budget: a decoding request one, or a
    draft tree; a long prompt is computed in chunks beside them. When blocks run out, the request admitted last gives
    its own back and waits at the front of the queue; what others do not keep of it is computed again later.

    As prefill goes by order of admission, whatever the prompts of earlier requests hold is planned, and can be shared,
    before a later one is admitted: nobody needs to wait for blocks that another will write in a later step.
    """

    def __init__(
        self,
        limits: EngineLimits,
        prefix_reuse: bool = True,
        prefill_budget: int | None = None,
        uniform_drafts: bool = False,
        whole_slots: bool = False,
        pace: Pace | None = None,
    ) -> None:
        """prefill_budget: most tokens of prompts in a step in which others decode; None is the whole step.

        uniform_drafts: a step has draft trees for all of its requests or for none.
        whole_slots: a block holds a whole request, and is kept for others' copies though it never is full.
        pace: how long prompts may make such a step.
        """
        self.pool = BlockPool(limits.num_blocks)
        self.prefixes = PrefixReuse(self.pool, limits.block_size, prefix_reuse, whole_slots)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission
        self.num_preemptions = 0
        self._limits = limits
        self._prefill_budget = prefill_budget
        self.pace = pace
        self._uniform_drafts = uniform_drafts
        self._free_slots = list(range(limits.max_batch_size))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_decoding(self) -> int:
        return sum(request.is_decoding for request in self.running)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self, shape: TreeShape | None = None, most_repeats: int = 1) -> Schedule:
        """Plan one step; requests that decode may get draft trees of `shape`.

        Where all of them decode and nobody can join, the step may be repeated up to `most_repeats` times.
        """
        repeats = 1
        if most_repeats > 1 or self._uniform_drafts:
            going_on = [request for request in self.running if request.num_wanted]
            only_decoding = all(request.is_decoding for request in going_on) and self._can_admit() is None
            if self._uniform_drafts and shape is not None:
                shape = shape if only_decoding and self._all_can_draft(going_on, shape) else None
            repeats = self._num_repeats(going_on, most_repeats, shape) if only_decoding else 1
        requests: list[Request] = []
        rows: list[PlanRow] = []
        admitted: list[Request] = []
        copies: list[tuple[int, int]] = []
        budget = self._limits.max_num_tokens
        for request in list(self.running):
            if not request.is_decoding:  # the last in order: while its prompt takes the budget, nobody is admitted
                budget = self._prompt_budget(budget, rows, request.num_computed)
            row = self._next_row(request, budget, shape, repeats) if budget else None
            if row is not None:
                requests.append(request)
                rows.append(row)
                budget -= row.num_tokens
        while budget and (found := self._can_admit()) is not None:
            budget = self._prompt_budget(budget, rows, self.prefixes.num_found(found))
            if not budget:
                break
            request = self._admit(found, copies)
            admitted.append(request)
            requests.append(request)
            rows.append(self._prefill_row(request, budget))
            budget -= rows[-1].num_tokens
        self.prefixes.end_step()
        shape = shape if any(row.drafts for row in rows) else None
        return Schedule(requests, StepPlan(rows, shape, copies, repeats), admitted)

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
            self.prefixes.end_step()

    def restart(self, schedule: Schedule) -> None:
        """Take back a step that failed. Every running request starts again: nobody knows what has been written."""
        for request, row in zip(schedule.requests, schedule.plan.rows, strict=True):
            request.num_in_flight -= schedule.plan.most_tokens(row)
        for request in reversed(self.running):
            self._preempt(request)
        self.prefixes.end_step()
        self.prefixes.cache.clear()

    def check(self) -> None:
        """Assert that running requests own all blocks that are held, and no slot twice, and that none has leaked."""
        self.pool.check()
        holders = Counter(block for request in self.running for block in request.blocks)
        assert all(self.pool.ref_count(block) == holders[block] for block in range(self.pool.num_blocks))
        self.prefixes.check(self.running)
        slots = [request.slot for request in self.running] + self._free_slots
        assert sorted(slot for slot in slots if slot is not None) == list(range(self._limits.max_batch_size))
        assert all(not request.blocks and request.slot is None for request in self.waiting)

    def _prompt_budget(self, budget: int, rows: list[PlanRow], start: int) -> int:
        """What of the budget a prompt may take from `start` on, beside the rows planned so far."""
        decoding = [row.start + row.num_tokens for row in rows if row.token_ids is None]
        if not decoding:
            return budget
        chunks = [(row.num_tokens, row.start) for row in rows if row.token_ids is not None]
        if self._prefill_budget is not None:
            budget = max(0, min(budget, self._prefill_budget - sum(count for count, _ in chunks)))
        return min(budget, self.pace.most_tokens(decoding, chunks, start)) if self.pace else budget

    def _all_can_draft(self, decoding: list[Request], shape: TreeShape) -> bool:
        """Whether every request may draft, within the token budget and without taking another's blocks."""
        return (
            all(request.params.speculate and request.num_wanted > 1 for request in decoding)
            and len(decoding) * shape.num_nodes <= self._limits.max_num_tokens
            and self.pool.can_allocate(sum(self._num_missing(request, shape.num_nodes) for request in decoding))
        )

    def _num_repeats(self, decoding: list[Request], most: int, shape: TreeShape | None) -> int:
        """How often a step of decoding requests can be repeated: none may end for sure, or need another's blocks."""
        of_one_pass = any(request.params.logprobs is not None or request.rules is not None for request in decoding)
        if most < 2 or not decoding or of_one_pass:
            return 1
        num_nodes, most_tokens = (shape.num_nodes, shape.depth + 1) if shape else (1, 1)
        repeats = min(most, min(request.num_wanted for request in decoding) // most_tokens)
        while repeats > 1 and not self.pool.can_allocate(
            sum(self._num_missing(request, num_nodes + (repeats - 1) * most_tokens) for request in decoding)
        ):
            repeats //= 2
        return max(repeats, 1)

    def _num_missing(self, request: Request, num_rows: int) -> int:
        """Blocks that a decoding request lacks for `num_rows` rows from its last token on."""
        return max(0, self._num_blocks(request.num_tokens - 1 + num_rows) - len(request.blocks))

    def _next_row(self, request: Request, budget: int, shape: TreeShape | None, repeats: int) -> PlanRow | None:
        """Plan a running request's share; None where it has nothing to do now, or lost its blocks."""
        if request.slot is None or not request.num_wanted:
            return None
        if not request.is_decoding:
            count = min(request.num_known - request.num_computed, budget)
            return self._prefill_row(request, count) if self._make_room(request, request.num_computed + count) else None
        if shape is not None and self._can_draft(request, budget, shape, repeats):
            return self._decode_row(request, shape.num_nodes, repeats * (shape.depth + 1))
        num_tokens = request.num_tokens - 1 + repeats
        return self._decode_row(request, 1, repeats) if self._make_room(request, num_tokens) else None

    def _prefill_row(self, request: Request, budget: int) -> PlanRow:
        """Plan the next known tokens of a request whose blocks reach that far."""
        assert request.slot is not None
        start = request.num_computed
        count = min(request.num_known - start, budget)
        emits = start + count == request.num_known
        request.num_computed += count
        request.num_in_flight += emits
        request.is_decoding = emits
        blocks = request.blocks  # this step's, whatever publishing changes
        self.prefixes.plan(request, start)
        return PlanRow(
            request.slot, request.known_ids(start, count), start, count, blocks, emits, request.params.logprobs,
            rules=request.rules,
        )  # fmt: skip

    def _decode_row(self, request: Request, num_nodes: int, most_tokens: int) -> PlanRow:
        """Plan the token that was drawn last, alone or as the root of a draft tree."""
        assert request.slot is not None
        assert request.rules is None or not request.num_in_flight, "rules need the whole text on the host"
        self.prefixes.publish(request)
        start = request.num_tokens - 1
        request.num_in_flight += most_tokens
        return PlanRow(
            request.slot, None, start, num_nodes, request.blocks, True, request.params.logprobs,
            drafts=num_nodes > 1, rules=request.rules,
        )  # fmt: skip

    def _can_draft(self, request: Request, budget: int, shape: TreeShape, repeats: int) -> bool:
        """Whether a tree fits without taking another request's blocks, which are grown to hold it then."""
        if not request.params.speculate or request.num_wanted < 2 or budget < shape.num_nodes:
            return False
        missing = self._num_missing(request, shape.num_nodes + (repeats - 1) * (shape.depth + 1))
        if not self.pool.can_allocate(missing):
            return False
        request.blocks.extend(self.pool.allocate(missing))
        return True

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Grow a running request's blocks to `num_tokens`, preempting later ones; False if it had to go itself."""
        missing = max(0, self._num_blocks(num_tokens) - len(request.blocks))
        while not self.pool.can_allocate(missing):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.blocks.extend(self.pool.allocate(missing))
        return True

    def _can_admit(self) -> Found | None:
        """What the first waiting request finds, if it has a slot, all its tokens on the host and blocks for them."""
        if not self.waiting or not self._free_slots or self.waiting[0].num_in_flight:
            return None
        request = self.waiting[0]
        found = self.prefixes.find(request, self.running)
        missing = self._num_blocks(request.num_known) - len(found.blocks)
        room = self.pool.num_free - sum(self.pool.ref_count(block) == 0 for block in found.blocks)
        if found.is_coming or missing > room:
            return None
        if found.source is not None and missing == room and self.pool.ref_count(found.source) == 0:
            return found.without_source()  # holding it for the copy would take the last block
        return found

    def _admit(self, found: Found, copies: list[tuple[int, int]]) -> Request:
        """Give the first waiting request its slot and blocks; add the copy that it needs before its first row."""
        request = self.waiting.popleft()
        self.prefixes.take(request, found)
        request.slot = self._free_slots.pop()
        request.blocks += self.pool.allocate(self._num_blocks(request.num_known) - len(found.blocks))
        if found.source is not None:
            copies.append((found.source, request.blocks[len(found.blocks)]))
        self.running.append(request)
        return request

    def _preempt(self, request: Request) -> None:
        self._stop_running(request)
        request.num_computed = 0
        request.is_decoding = False
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _stop_running(self, request: Request) -> None:
        assert request.slot is not None
        self.prefixes.leave(request)
        self.running.remove(request)
        self.pool.release(request.blocks)
        self._free_slots.append(request.slot)
        request.blocks, request.slot, request.num_published = [], None, 0

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._limits.block_size)
