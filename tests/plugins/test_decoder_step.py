"""The whole-step kernel against its reference: emulated on the CPU, and on a GPU where there is one."""

from typing import NamedTuple

import pytest
import torch

from plugins.decoder_step.cuda import THREADS, DecoderStep, step_source
from plugins.decoder_step.plan import StepPlan, plan_step, shared_bytes, supports
from plugins.decoder_step.reference import decoder_step_reference
from plugins.decoder_step.state import StepState
from plugins.decoder_step.weights import StepLayer, StepSpec, StepWeights
from plugins.rms_norm.reference import rms_norm_reference
from tests.plugins.cuda.emulator.run import emulate, needs_emulator

BLOCK_SIZE = 16
EMULATED_BLOCKS = 5  # thread blocks, so that each has several tiles and items
# What enters a product is rounded to 8 bits (relative 2^-9 at most, 2^-10 on average), and a layer has four products
# whose errors add like independent ones: sqrt(4 L) 2^-10 for L = 3 is 0.0034; the cache holds rounded values as well.
TOLERANCE = 0.01

PLAIN = StepSpec(64, 2, 4, 2, 16, 96, 130, 1e-5, False, False, None)
ALL = StepSpec(96, 3, 6, 2, 32, 160, 515, 1e-6, True, True, None)
WINDOW = StepSpec(64, 2, 4, 1, 64, 96, 130, 1e-5, False, False, 40)
TREE = (0, 0, 0, 1, 1, 2, 3, 3, 6)


class Request(NamedTuple):
    context_len: int
    num_rows: int = 1
    parents: tuple[int, ...] | None = None


class Case:
    """A batch of requests over shuffled blocks, and what each row sees."""

    def __init__(self, spec: StepSpec, requests: list[Request]) -> None:
        generator = torch.Generator().manual_seed(len(requests))
        counts = [-(-request.context_len // BLOCK_SIZE) for request in requests]
        blocks = torch.randperm(sum(counts) + 2, generator=generator).tolist()
        self.num_blocks = len(blocks)
        self.tables = [[blocks.pop() for _ in range(count)] for count in counts]
        self.starts, self.contexts, self.requests = [0], [r.context_len for r in requests], requests
        self.visible: list[list[list[int]]] = []
        positions: list[int] = []
        bits = torch.zeros(len(requests), max(r.num_rows for r in requests), dtype=torch.int64)
        for index, request in enumerate(requests):
            seen = _seen(request)
            first = request.context_len - request.num_rows
            depths = [len(nodes) - 1 for nodes in seen]
            positions += [first + depth for depth in depths]
            window = spec.sliding_window or request.context_len
            self.visible.append([
                [key for key in range(first) if key > first + depth - window]
                + [first + node for node in nodes if depths[node] > depth - window]
                for nodes, depth in zip(seen, depths, strict=True)
            ])  # fmt: skip
            if request.parents is not None:
                bits[index, : request.num_rows] = torch.tensor([sum(1 << node for node in nodes) for nodes in seen])
            self.starts.append(self.starts[-1] + request.num_rows)
        self.token_ids = torch.randint(0, spec.vocab_size, (self.starts[-1],), generator=generator)
        self.positions = torch.tensor(positions)
        self.ancestors = bits if bits.any() else None

    def batch(self, device: str) -> list[torch.Tensor | None]:
        widest = max(map(len, self.tables))
        tables = torch.tensor([[*table, *[10**9] * (widest - len(table))] for table in self.tables])
        tensors = [self.token_ids, self.positions, torch.tensor(self.starts), torch.tensor(self.contexts), tables]
        return [None if tensor is None else tensor.to(device) for tensor in [*tensors, self.ancestors]]

    def cache(self, spec: StepSpec) -> torch.Tensor:
        """Old keys, and NaN wherever no row may look."""
        shape = (2 * spec.num_layers, self.num_blocks, spec.num_kv_heads, BLOCK_SIZE, spec.head_dim)
        cache = torch.full(shape, torch.nan)
        generator = torch.Generator().manual_seed(7)
        for request, table in zip(self.requests, self.tables, strict=True):
            for key in range(request.context_len - request.num_rows):
                old = torch.randn(shape[0], shape[2], shape[4], generator=generator)
                cache[:, table[key // BLOCK_SIZE], :, key % BLOCK_SIZE] = old
        return cache.bfloat16()


def _seen(request: Request) -> list[list[int]]:
    if request.parents is None:
        return [list(range(row + 1)) for row in range(request.num_rows)]
    seen = [[0]]
    for node, parent in enumerate(request.parents[1:], start=1):
        seen.append([*seen[parent], node])
    return seen


def random_weights(spec: StepSpec) -> StepWeights:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return (mean + scale * torch.randn(*shape, generator=generator)).bfloat16()

    def norm(width: int) -> torch.Tensor:
        return normal(width, scale=0.2, mean=1.0)

    def layer() -> StepLayer:
        h, i, d = spec.hidden_size, spec.intermediate_size, spec.head_dim
        q, qkv = spec.num_heads * d, (spec.num_heads + 2 * spec.num_kv_heads) * d
        return StepLayer(
            input_norm=norm(h), qkv=normal(qkv, h, scale=h**-0.5),
            qkv_bias=normal(qkv, scale=0.3) if spec.qkv_bias else None,
            q_norm=norm(d) if spec.qk_norm else None, k_norm=norm(d) if spec.qk_norm else None,
            dense=normal(h, q, scale=q**-0.5), post_norm=norm(h), fc=normal(i, h, scale=h**-0.5),
            gate=normal(i, h, scale=h**-0.5), down=normal(h, i, scale=i**-0.5),
        )  # fmt: skip

    angles = torch.outer(torch.arange(640.0), 10_000.0 ** -torch.arange(0, 1, 2 / spec.head_dim))
    cos, sin = torch.cos(angles), torch.sin(angles)
    return StepWeights(
        spec, [layer() for _ in range(spec.num_layers)], normal(spec.vocab_size, spec.hidden_size),
        norm(spec.hidden_size), normal(spec.vocab_size, spec.hidden_size, scale=spec.hidden_size**-0.5),
        torch.cat([cos, cos], 1).bfloat16(), torch.cat([-sin, sin], 1).bfloat16(),
    )  # fmt: skip


def plan_of(spec: StepSpec, rows: int) -> StepPlan:
    plan = plan_step(spec, rows)
    assert isinstance(plan, StepPlan)
    return plan


class Emulated:
    """Steps of one state on the CPU; every launch in the other order of threads and blocks."""

    device = "cpu"

    def __init__(self, weights: StepWeights, cache: torch.Tensor, rows: int, arch: int = 900) -> None:
        self._plan, self._spec, self._arch, self._launches = plan_of(weights.spec, rows), weights.spec, arch, 0
        self._state = StepState(weights, cache, self._plan, 640, EMULATED_BLOCKS)

    def __call__(self, *arguments: torch.Tensor | None) -> None:
        source = step_source(self._spec, self._plan, BLOCK_SIZE)
        emulate(
            source, EMULATED_BLOCKS, THREADS, shared_bytes(self._spec, self._plan), self._state.params(*arguments),
            cooperative=True, reverse=self._launches % 2 == 1, arch=self._arch,
        )  # fmt: skip
        self._launches += 1


class OnGpu(DecoderStep):
    device = "cuda"

    def __init__(self, weights: StepWeights, cache: torch.Tensor, rows: int) -> None:
        super().__init__(to_cuda(weights), cache, rows, 640)


def to_cuda(weights: StepWeights) -> StepWeights:
    layers = [StepLayer(*(t if t is None else t.cuda() for t in layer)) for layer in weights.layers]
    return StepWeights(weights.spec, layers, *(tensor.cuda() for tensor in weights[2:]))


@pytest.fixture(params=[pytest.param(Emulated, marks=needs_emulator), pytest.param(OnGpu, marks=pytest.mark.gpu)])
def implementation(request):
    return request.param


def run(step, case: Case, spec: StepSpec) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows = case.starts[-1]
    logits = torch.full((num_rows, spec.vocab_size), torch.nan, device=step.device)
    hidden = torch.full((num_rows, spec.hidden_size), torch.nan, device=step.device)
    step(*case.batch(step.device), logits, hidden)
    return logits.cpu(), hidden.cpu()


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


CASES = {
    "one token": (PLAIN, [Request(1)]),
    "one split": (PLAIN, [Request(37)]),
    "several splits": (ALL, [Request(300)]),
    "many splits": (PLAIN, [Request(600), Request(390, 3)]),
    "many requests": (PLAIN, [Request(50 + 9 * index) for index in range(16)]),
    "chains and a tree": (ALL, [Request(128), Request(129), Request(300, 3), Request(131, 5, TREE[:5]), Request(1)]),
    "two query tiles": (WINDOW, [Request(133, 9, TREE), Request(270, 7)]),
    "window": (WINDOW, [Request(39), Request(41), Request(300)]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_reference(name, implementation):
    spec, requests = CASES[name]
    case, weights = Case(spec, requests), random_weights(spec)
    old = case.cache(spec)
    cache, expected_cache = old.to(implementation.device), old.double()
    logits, hidden = decoder_step_reference(
        weights, case.token_ids, case.positions, case.starts, case.contexts, case.tables, case.visible, expected_cache
    )
    step = implementation(weights, cache, 1 if case.starts[-1] == 1 else 16)
    first = run(step, case, spec)
    assert distance(first[0], logits) < TOLERANCE
    assert distance(first[1], hidden) < TOLERANCE
    written = ~expected_cache.isnan()
    assert torch.equal(cache.cpu().isnan(), ~written)  # nothing beside the new tokens' keys and values
    assert distance(cache.cpu()[written], expected_cache[written]) < TOLERANCE
    again = run(step, case, spec)  # the other set of the exchange, and splits' counts that are back at 0
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_a_row_does_not_depend_on_the_others_or_on_their_number(implementation):
    requests = [Request(20), Request(140), Request(129), Request(33, 9, TREE), Request(7, 4)]
    weights = random_weights(PLAIN)
    everything = Case(PLAIN, requests)
    cache = everything.cache(PLAIN)
    together = run(implementation(weights, cache.to(implementation.device), 16), everything, PLAIN)
    for index, request in enumerate(requests):
        alone = Case(PLAIN, [request])
        rows = slice(everything.starts[index], everything.starts[index + 1])
        alone.token_ids, alone.tables = everything.token_ids[rows], [everything.tables[index]]
        step = implementation(weights, cache.to(implementation.device), 1 if request.num_rows == 1 else 16)
        logits, hidden = run(step, alone, PLAIN)
        assert torch.equal(logits, together[0][rows])
        assert torch.equal(hidden, together[1][rows])


@needs_emulator
def test_the_path_without_bulk_copies_gives_the_same():
    case, weights = Case(PLAIN, [Request(37), Request(20)]), random_weights(PLAIN)
    results = [run(Emulated(weights, case.cache(PLAIN), 16, arch), case, PLAIN)[0] for arch in (800, 900)]
    assert torch.equal(*results)


def test_hidden_is_what_the_head_multiplies(implementation):
    case, weights = Case(PLAIN, [Request(37)]), random_weights(PLAIN)
    logits, hidden = run(implementation(weights, case.cache(PLAIN).to(implementation.device), 1), case, PLAIN)
    assert distance(hidden, rms_norm_reference(hidden / weights.final_norm, weights.final_norm, 0.0)) < 0.01
    assert distance(logits, hidden.double() @ weights.head.double().T) < TOLERANCE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 72}, "hidden_size is 72"),
        ({"intermediate_size": 100}, "intermediate_size is 100"),
        ({"head_dim": 24, "num_heads": 4}, "head_dim is 24"),
        ({"hidden_size": 16384}, "no room"),
    ],
)
def test_what_the_kernel_cannot_take_is_said_in_one_line(change, reason):
    said = supports(PLAIN._replace(**change), torch.bfloat16, 32)
    assert said is not None
    assert reason in said


def test_other_dtypes_and_more_rows_are_left_to_the_ops():
    assert supports(PLAIN, torch.bfloat16, 32) is None
    assert "float16" in str(supports(PLAIN, torch.float16))
    assert "33 rows" in str(supports(PLAIN, torch.bfloat16, 33))


def test_batches_of_another_shape_or_dtype_are_refused():
    case, weights = Case(PLAIN, [Request(37)]), random_weights(PLAIN)
    state = StepState(weights, case.cache(PLAIN), plan_of(PLAIN, 1), 512, 1)
    logits, hidden = torch.empty(1, PLAIN.vocab_size), torch.empty(1, PLAIN.hidden_size)
    batch = case.batch("cpu")
    with pytest.raises(ValueError, match="must be \\(1, 130\\)"):
        state.params(*batch, logits[:, 1:], hidden)
    with pytest.raises(ValueError, match="int64"):
        state.params(batch[0].int(), *batch[1:], logits, hidden)
    with pytest.raises(ValueError, match="2 rows"):
        state.params(batch[0].repeat(2), *batch[1:], logits, hidden)
