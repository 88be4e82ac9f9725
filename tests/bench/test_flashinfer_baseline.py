"""FlashInfer's part of the attention row, held to what FlashInfer documents: it runs where that is installed."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import flashinfer_baseline
from bench.gpu.flashinfer_baseline import flashinfer_us, step_of
from plugins.attention.bench import BLOCK_SIZE, CASES, Case


class Wrapper:
    """BatchDecodeWithPagedKVCacheWrapper, as its documentation has it: pages (P, heads, page, D) for HND."""

    def __init__(self, workspace, kv_layout, use_tensor_cores):
        assert (workspace.dtype, kv_layout) == (torch.uint8, "HND")

    def plan(self, indptr, indices, last_page_len, num_qo, num_kv, head_dim, page_size, *, q_data_type, kv_data_type):
        self.sizes = num_qo, num_kv, head_dim, page_size
        assert {indptr.dtype, indices.dtype, last_page_len.dtype} == {torch.int32}
        assert q_data_type == kv_data_type == torch.bfloat16
        self.keys = ((indptr.diff() - 1) * page_size + last_page_len).tolist()
        assert sorted(indices.tolist()) == list(range(int(indptr[-1])))

    def run(self, q, kv_cache):
        num_qo, num_kv, head_dim, page_size = self.sizes
        assert q.shape == (len(self.keys), num_qo, head_dim)
        assert all(cache.shape[1:] == (num_kv, page_size, head_dim) for cache in kv_cache)
        return q


def prefill(q, k, v, *, causal, kv_layout):
    assert causal
    assert kv_layout == "NHD"
    assert k.shape == v.shape == (q.shape[0], 8, q.shape[2])
    return q


@pytest.fixture
def installed(monkeypatch):
    made = []

    def wrapper(*args, **kwargs):
        made.append(Wrapper(*args, **kwargs))
        return made[-1]

    module = SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=wrapper, single_prefill_with_kv_cache=prefill)
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(flashinfer_baseline, "find_spec", lambda name: name)
    return made


def test_decoding_attends_to_each_requests_context(installed):
    outputs = step_of(Case("d", batch=3, rows=1, context=BLOCK_SIZE + 5), 2, "cpu")()
    assert installed[0].keys == [BLOCK_SIZE + 5] * 3
    assert [output.shape for output in outputs] == [(3, 32, 128)] * 2


def test_a_prompt_attends_to_itself(installed):
    assert step_of(Case("p", batch=1, rows=48, context=48), 2, "cpu")()[1].shape == (48, 32, 128)


def test_other_shapes_and_machines_without_it_have_no_figure(installed, monkeypatch):
    for name in ("tree", "chunk"):
        assert flashinfer_us(next(case for case in CASES if case.name.startswith(name)), 1) is None
    monkeypatch.setattr(flashinfer_baseline, "find_spec", lambda name: None)
    assert flashinfer_us(CASES[0], 1) is None
