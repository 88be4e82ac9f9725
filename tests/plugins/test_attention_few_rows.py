"""Attention of a step of few rows against float64: ragged batches, trees, windows and a poisoned cache."""

import pytest
import torch

from plugins.attention import AttentionShape
from plugins.attention.few_rows import FEW_HEAD_DIMS, FewRowsAttention
from tests.plugins.paged import make_case, random_tree
from tests.plugins.test_attention_cuda import ROUNDOFF, check_output

SIZES = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "block_size": 16, "dtype": torch.bfloat16}
CLUSTERS = (1, 2, 4)  # blocks that share a tile


@pytest.fixture(params=CLUSTERS, ids=str)
def cluster(request, monkeypatch):
    use_cluster(monkeypatch, request.param)


def use_cluster(monkeypatch, cluster):
    def tiles(shape, num_requests, num_tokens):
        return num_tokens * shape.num_heads // shape.num_kv_heads // 16 + num_requests, cluster

    monkeypatch.setattr("plugins.attention.few_rows._tiles", tiles)


def run(case, window=None):
    head_dim, block_size = case.q.shape[2], case.k_cache.shape[2]
    shape = AttentionShape(case.q.shape[1], case.k_cache.shape[1], block_size, window, head_dim)
    attend = FewRowsAttention(
        shape, case.query_starts, case.context_lens, case.block_tables, case.ancestors, len(case.q)
    )
    out = torch.full_like(case.q, float("nan"))
    attend(case.q, case.k_cache, case.v_cache, head_dim**-0.5, out)
    return out


def check(case, window=None):
    check_output(run(case, window), case, window)


CASES = {
    "decode at edges of chunks and visits": ([1] * 7, [1, 15, 16, 17, 127, 128, 129]),
    "ragged, some without queries": ([1, 0, 5, 20, 0], [700, 0, 9, 20, 17]),
    "several visits of each part": ([2, 7], [1700, 513]),
    "more requests than lanes": ([1, 0] * 20, [1 + 3 * i for i in range(40)]),
}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("window", [None, 50, 300])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(kernel_device, name, window):
    check(make_case(*CASES[name], **SIZES, device=kernel_device), window)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("head_dim", FEW_HEAD_DIMS)
def test_head_dims_and_dtypes(kernel_device, head_dim, dtype):
    sizes = SIZES | {"head_dim": head_dim, "dtype": dtype, "device": kernel_device}
    check(make_case([1, 9, 12], [270, 9, 150], **sizes))


@pytest.mark.parametrize(
    ("heads", "block_size"), [((4, 4), 16), ((3, 1), 32), ((9, 3), 128), ((14, 2), 16), ((8, 1), 64)]
)
def test_any_group_and_block_size(kernel_device, heads, block_size):
    sizes = SIZES | {"num_heads": heads[0], "num_kv_heads": heads[1], "block_size": block_size}
    check(make_case([1, 12, 3], [12, 300, 140], **sizes, device=kernel_device))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("window", [None, 3, 12])
def test_trees_beside_chains(kernel_device, window):
    generator = torch.Generator().manual_seed(0)
    ancestors = [random_tree(32, generator), [0] * 32, random_tree(32, generator)]
    check(make_case([32, 5, 32], [300, 9, 32], **SIZES, ancestors=ancestors, device=kernel_device), window)


def test_a_tree_of_64(kernel_device):
    ancestors = [random_tree(64, torch.Generator().manual_seed(1))]
    check(make_case([64], [200], **SIZES, ancestors=ancestors, device=kernel_device))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_row_is_the_same_in_every_cluster_and_batch(kernel_device, monkeypatch, head_dim):
    sizes = SIZES | {"device": kernel_device, "head_dim": head_dim}
    whole = make_case([40, 1], [660, 20], **sizes)
    use_cluster(monkeypatch, 1)
    expected = run(whole)
    for cluster in CLUSTERS[1:]:
        use_cluster(monkeypatch, cluster)
        assert torch.equal(run(whole), expected), cluster
    for (rows, first), cluster in zip(((1, 0), (1, 39), (3, 10)), CLUSTERS, strict=True):
        use_cluster(monkeypatch, cluster)
        case = make_case([40, 1], [660, 20], **sizes)
        case.q, case.query_starts = whole.q[first : first + rows], torch.tensor([0, rows], device=kernel_device)
        case.context_lens = torch.tensor([620 + first + rows], device=kernel_device)
        case.block_tables = case.block_tables[:1].clone()
        assert torch.equal(run(case), expected[first : first + rows])
        chain = [(2 << row) - 1 for row in range(rows)]
        case.ancestors = torch.tensor([chain], device=kernel_device)
        assert torch.equal(run(case), expected[first : first + rows])
