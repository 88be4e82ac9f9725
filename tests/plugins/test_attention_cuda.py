"""The attention kernels against float64, on ragged batches, trees, windows and a poisoned cache."""

import pytest
import torch

from plugins.attention import AttentionShape, attention, plan_attention
from plugins.attention.cuda import (
    PREFILL_ARCHS,
    PREFILL_HEAD_DIMS,
    attention_cuda,
    plan_attention_cuda,
    prefill_source,
)
from plugins.cuda.errors import KernelError
from plugins.cuda.nvrtc import compile_source
from tests.plugins.cuda.emulator.run import emulate, emulated_rows, needs_emulator
from tests.plugins.paged import make_case, random_tree

on_gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

# u, half the spacing of numbers just above 1. Weights are rounded to the cache's dtype before they meet the values, and
# the output once more: an element is off by at most u (sum p |v|) + u |out|, and sum p |v| <= max |v|.
ROUNDOFF = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


def run(case, window=None, max_query_len=None, out=None):
    head_dim, block_size = case.q.shape[2], case.k_cache.shape[2]
    shape = AttentionShape(case.q.shape[1], case.k_cache.shape[1], block_size, window, head_dim)
    # CPU tensors are for the emulator: the public functions would give them to the CPU's implementation.
    make_plan, attend = (plan_attention, attention) if case.q.is_cuda else (plan_attention_cuda, attention_cuda)
    plan = make_plan(
        shape, case.query_starts, case.context_lens, case.block_tables, case.q.dtype, case.ancestors, len(case.q),
        max_query_len,
    )  # fmt: skip
    out = torch.full_like(case.q, float("nan")) if out is None else out
    attend(case.q, case.k_cache, case.v_cache, plan, head_dim**-0.5, out)
    return out


@pytest.fixture(params=[(False, 900), (True, 860)], ids=["first thread first", "last thread first, sm_86"])
def emulated(request, monkeypatch):
    """Launches go to the host emulator, of a GPU with 227 KiB of shared memory per block or with 99."""
    reverse, arch = request.param
    most_shared = (227 if arch == 900 else 99) * 1024

    def launch(kernel, grid, block, shared_bytes, params, stream, dependent):
        assert shared_bytes <= most_shared
        source, entry = kernel
        emulate(source, grid, block, shared_bytes, params, entry=entry, reverse=reverse, arch=arch)

    monkeypatch.setattr("plugins.attention.cuda_layout.has_large_shared", lambda device: arch == 900)
    monkeypatch.setattr("plugins.attention.cuda.has_wgmma", lambda device: arch == 900)
    monkeypatch.setattr("plugins.attention.cuda.has_image", lambda source: True)
    monkeypatch.setattr("plugins.attention.cuda.resident_blocks", lambda kernel, threads, shared_bytes: 6)
    monkeypatch.setattr("plugins.attention.cuda.get_kernel", lambda source, entry, params_type: (source, entry))
    monkeypatch.setattr("plugins.attention.cuda.encode_rows", emulated_rows)
    monkeypatch.setattr("plugins.attention.cuda.current_stream", lambda: 0)
    monkeypatch.setattr("plugins.attention.cuda.launch", launch)


def check(case, window=None, max_query_len=None):
    check_output(run(case, window, max_query_len), case, window)


def check_output(out, case, window=None):
    """Against float64, to the roundings of the cache's dtype."""
    got = out.double()
    expected = case.expected(case.q.shape[2] ** -0.5, window)
    unit = ROUNDOFF[case.q.dtype]
    largest = max(
        float(v.abs().max()) for v in (case.keys_of(r)[1] for r in range(len(case.context_lens))) if v.numel()
    )
    assert (got - expected).abs().max() <= 2 * unit * largest + 1e-5
    # Roundings of many weights are independent, so that whole rows are nearer than their worst element.
    assert (got - expected).norm() <= 2 * unit * expected.norm()


SIZES = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "block_size": 16, "dtype": torch.bfloat16, "device": "cuda"}
CASES = {
    "one decode": ([1], [1]),
    "decode at edges of blocks, chunks and splits": ([1] * 9, [15, 16, 17, 63, 64, 65, 255, 256, 257]),
    "ragged decode": ([1] * 6, [1, 700, 33, 1025, 2, 512]),
    "requests without queries": ([1, 0, 1, 0], [40, 0, 300, 17]),
    "whole prompts": ([5, 16, 90, 64, 65], [5, 16, 90, 64, 65]),
    "prefill chunks over a past": ([4, 130, 64, 33], [1000, 700, 64, 33]),
    "prefill and decode in one batch": ([1, 200, 1, 6, 1], [400, 513, 9, 30, 2000]),
    "a long prompt": ([777], [777]),
    "long prompts, one over a past": ([2500, 700], [2500, 1500]),
}


TINY = SIZES | {"num_heads": 4, "device": "cpu"}
TINY_CASES = {
    "decode": ([1, 1, 0, 1, 1], [1, 17, 0, 257, 520]),
    "prefill and decode in one batch": ([5, 1, 66, 20], [5, 40, 80, 270]),
}


@needs_emulator
@pytest.mark.usefixtures("emulated")
class TestEmulated:
    """What a GPU then confirms: indices, masks, folds, and that nothing outside a request's keys matters."""

    @pytest.mark.parametrize("window", [None, 50])
    @pytest.mark.parametrize("name", TINY_CASES)
    def test_equals_the_reference(self, name, window):
        check(make_case(*TINY_CASES[name], **TINY), window)

    @pytest.mark.parametrize(("head_dim", "dtype"), [(96, torch.float16), (128, torch.bfloat16), (256, torch.float16)])
    def test_head_dims_and_dtypes(self, head_dim, dtype):
        sizes = TINY | {"head_dim": head_dim, "dtype": dtype, "num_heads": 2}
        check(make_case([1, 9, 65], [270, 9, 70], **sizes))
        check(make_case([20], [40], **sizes))

    @pytest.mark.parametrize(("window", "head_dim"), [(None, 64), (3, 64), (None, 96)])
    def test_trees_beside_chains(self, window, head_dim):
        generator = torch.Generator().manual_seed(0)
        ancestors = [random_tree(12, generator), [0] * 12, random_tree(12, generator)]
        sizes = TINY | {"head_dim": head_dim}
        check(make_case([12, 5, 12], [600, 9, 12], **sizes, ancestors=ancestors), window)
        check(make_case([12], [300], **sizes, ancestors=ancestors[:1]), window)

    def test_a_row_is_the_same_in_every_kernel_and_batch(self):
        whole = make_case([40, 1], [300, 20], **TINY)
        expected = run(whole)
        for rows, first in ((1, 0), (1, 39), (3, 10)):
            case = make_case([40, 1], [300, 20], **TINY)
            case.q, case.query_starts = whole.q[first : first + rows], torch.tensor([0, rows])
            case.context_lens, case.block_tables = torch.tensor([260 + first + rows]), case.block_tables[:1].clone()
            assert torch.equal(run(case), expected[first : first + rows])

    @pytest.mark.parametrize(("window", "heads"), [(None, (4, 2)), (150, (6, 2))])
    @pytest.mark.parametrize(("head_dim", "dtype"), [(64, torch.bfloat16), (128, torch.float16)])
    def test_long_prompts_in_turns(self, head_dim, dtype, window, heads):
        """More tiles than blocks, keys before the window, and a last tile that ends in the middle of a page."""
        sizes = TINY | {"head_dim": head_dim, "dtype": dtype, "num_heads": heads[0], "num_kv_heads": heads[1]}
        check(make_case([70, 130, 3], [270, 301, 9], **sizes), window)
        check(make_case([101], [101], **sizes | {"block_size": 64}), window)

    def test_many_requests_share_few_blocks_of_the_grid(self, monkeypatch):
        monkeypatch.setattr("plugins.attention.cuda.resident_blocks", lambda kernel, threads, shared_bytes: 3)
        check(make_case([1] * 35, [1 + 11 * i for i in range(35)], **TINY))

    @pytest.mark.parametrize("window", [None, 3500])
    def test_many_splits_are_folded_in_batches(self, window):
        check(make_case([1, 1, 0, 2], [6000, 300, 0, 2100], **TINY), window)

    def test_longer_splits_where_the_workspace_is_short(self, monkeypatch):
        monkeypatch.setattr("plugins.attention.cuda_layout.WORKSPACE_BYTES", 5 * 4 * 68 * 4)
        check(make_case([1, 1, 1], [300, 1030, 700], **TINY))


@pytest.mark.parametrize("head_dim", PREFILL_HEAD_DIMS)
def test_products_of_long_prompts_run_beside_the_softmax(head_dim):
    """What the compiler says where it makes each product wait for the one before, for want of registers."""
    compiled = compile_source(prefill_source(torch.bfloat16, head_dim), *PREFILL_ARCHS)
    assert "serialized" not in compiled.log
    assert compiled.spill_bytes == 0


@on_gpu
@needs_gpu
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, dtype, head_dim):
    check(make_case(*CASES[name], **SIZES | {"dtype": dtype, "head_dim": head_dim}))


@on_gpu
@needs_gpu
@pytest.mark.parametrize("block_size", [16, 32, 128, 1024])
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (9, 3), (14, 2), (32, 1)], ids=str)
def test_any_group_and_block_size(heads, block_size):
    sizes = SIZES | {"num_heads": heads[0], "num_kv_heads": heads[1], "block_size": block_size}
    check(make_case([1, 6, 1, 100], [12, 600, 3000, 150], **sizes))


@on_gpu
@needs_gpu
@pytest.mark.parametrize("window", [1, 5, 16, 255, 256, 1000])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_sliding_window_hides_older_keys(window, head_dim):
    check(make_case([1, 6, 1, 64, 150], [12, 600, 3000, 64, 400], **SIZES | {"head_dim": head_dim}), window)


@on_gpu
@needs_gpu
@pytest.mark.parametrize("window", [None, 3, 12, 300])
@pytest.mark.parametrize("num_nodes", [12, 32, 64])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_trees_beside_chains(num_nodes, window, head_dim):
    generator = torch.Generator().manual_seed(num_nodes)
    ancestors = [random_tree(num_nodes, generator), [0] * num_nodes, random_tree(num_nodes, generator), [0] * num_nodes]
    query_lens, contexts = [num_nodes, 5, num_nodes, 100], [num_nodes + 700, 9, num_nodes, 400]
    check(make_case(query_lens, contexts, **SIZES | {"head_dim": head_dim}, ancestors=ancestors), window)


@on_gpu
@needs_gpu
@pytest.mark.parametrize("window", [3, 300])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_float16_with_windows_and_trees(window, head_dim):
    sizes = SIZES | {"head_dim": head_dim, "dtype": torch.float16}
    check(make_case([1, 6, 1, 64, 150], [12, 600, 3000, 64, 400], **sizes), window)
    ancestors = [random_tree(32, torch.Generator().manual_seed(5)), [0] * 32]
    check(make_case([32, 5], [732, 9], **sizes, ancestors=ancestors), window)


@on_gpu
@needs_gpu
def test_128k_keys():
    check(make_case([1, 4], [131072, 100003], **SIZES))


@on_gpu
@needs_gpu
def test_queries_and_output_may_be_slices():
    case = make_case([3, 1, 70], [100, 257, 90], **SIZES)
    wide = torch.full((74, 8 + 4, 64 + 16), float("nan"), dtype=torch.bfloat16, device="cuda")
    expected = run(case)
    wide[:, 2:10, 8:72] = case.q
    case.q = wide[:, 2:10, 8:72]
    target = torch.full_like(wide, 7.0)
    assert torch.equal(run(case, out=target[:, 2:10, 8:72]), expected)
    target[:, 2:10, 8:72] = 7.0
    assert bool((target == 7.0).all()), "wrote beside the output"


@on_gpu
@needs_gpu
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("past", "window"), [(1000, None), (2550, None), (1000, 100)])
def test_a_row_is_the_same_among_1_2_13_or_64(head_dim, past, window):
    """Bit for bit, whatever rows and requests are beside it, as a chain or as a tree that is one."""
    whole = make_case([64], [past + 64], **SIZES | {"head_dim": head_dim})
    expected = run(whole, window)
    for rows in (1, 2, 13, 64):
        for first in range(0, 64 - rows + 1, max(rows - 1, 1)):
            case = make_case([64], [past + 64], **SIZES | {"head_dim": head_dim})
            case.q = whole.q[first : first + rows]
            case.query_starts = torch.tensor([0, rows], device="cuda")
            case.context_lens = torch.tensor([past + first + rows], device="cuda")
            assert torch.equal(run(case, window), expected[first : first + rows]), (rows, first)
            chain = [(2 << row) - 1 for row in range(rows)]
            case.ancestors = torch.tensor([[b - 2**64 if b >= 2**63 else b for b in chain]], device="cuda")
            assert torch.equal(run(case, window), expected[first : first + rows]), (rows, first)
            if first > 70:
                break


@on_gpu
@needs_gpu
def test_a_request_is_the_same_alone_and_in_a_batch():
    case = make_case([1] * 40, [37 * i + 1 for i in range(40)], **SIZES)
    together = run(case)
    for request in (0, 13, 39):
        alone = make_case([1] * 40, [37 * i + 1 for i in range(40)], **SIZES)
        alone.q, alone.query_starts = case.q[request : request + 1], case.query_starts[:2]
        alone.context_lens = case.context_lens[request : request + 1].clone()
        alone.block_tables = case.block_tables[request : request + 1].clone()
        assert torch.equal(run(alone)[0], together[request])


@on_gpu
@needs_gpu
def test_a_captured_plan_serves_other_lengths():
    """One graph of plan and attention, replayed after everything on the device has changed."""
    first = make_case([1, 1, 1], [700, 5, 64], **SIZES)
    run(first)  # loads the kernels
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = run(first)
        again = run(first)
    for lens in ([700, 5, 64], [3, 651, 1], [1, 1, 1]):
        first.context_lens.copy_(torch.tensor(lens))
        out.fill_(float("nan"))
        graph.replay()
        case = make_case([1, 1, 1], [700, 5, 64], **SIZES)
        case.context_lens = torch.tensor(lens, device="cuda")
        expected = run(_readable(case, first))
        assert torch.equal(out, expected)
        assert torch.equal(again, expected)


def _readable(case, of):
    """`case` over the cache of `of`, whose blocks hold finite keys wherever either looks."""
    for cache in (of.k_cache, of.v_cache):
        cache.nan_to_num_(0.5, 0.5, 0.5)
    case.k_cache, case.v_cache, case.q = of.k_cache, of.v_cache, of.q
    case.block_tables.clamp_(max=len(of.k_cache) - 1)
    of.block_tables.clamp_(max=len(of.k_cache) - 1)
    return case


REFUSED = {
    "head_dim is 80": {"head_dim": 80},
    "block_size is 24": {"block_size": 24},
    "block_size is 8": {"block_size": 8},
}


@on_gpu
@needs_gpu
@pytest.mark.parametrize("message", REFUSED)
def test_sizes_without_a_kernel_are_refused(message):
    with pytest.raises(KernelError, match=message):
        run(make_case([1], [10], **SIZES | REFUSED[message]))


@on_gpu
@needs_gpu
def test_mixed_dtypes_are_refused():
    case = make_case([1], [10], **SIZES)
    case.k_cache = case.k_cache.half()
    with pytest.raises(KernelError, match="all must be bfloat16, or all float16"):
        run(case)


@on_gpu
@needs_gpu
def test_misaligned_queries_are_refused():
    case = make_case([1], [10], **SIZES)
    case.q = torch.zeros(1, 8, 68, dtype=torch.bfloat16, device="cuda")[:, :, 4:]
    with pytest.raises(KernelError, match="aligned to 16 bytes"):
        run(case, out=torch.empty(1, 8, 64, dtype=torch.bfloat16, device="cuda"))
