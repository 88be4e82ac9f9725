"""The tree packing kernel packs what the torch implementation packs."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.tree_pack.batched import tree_pack_batched
from plugins.tree_pack.cuda import tree_pack_cuda


def candidates(requests, count, generator):
    """Candidates of trees 5 wide; scores are coarse, so that ties occur, and some are none."""
    ids = torch.randint(0, 99, (requests, count), generator=generator)
    parents = torch.arange(count).expand(requests, -1) - torch.randint(1, 10, (requests, count), generator=generator)
    parents = torch.where(parents >= 0, parents, -1)
    steps = torch.tensor([0.0, 0.5, 1.0, torch.inf])[torch.randint(0, 4, (requests, count), generator=generator)]
    scores = torch.zeros(requests, count)
    for column in range(count):
        above = parents[:, column]
        of_parent = scores.gather(1, above.clamp(min=0).unsqueeze(1)).squeeze(1)
        scores[:, column] = torch.where(above >= 0, of_parent, 0.0) - steps[:, column]
    return ids, parents.contiguous(), scores, torch.arange(100, 100 + requests)


def pack(implementation, case, num_nodes):
    tree = [torch.full((len(case[0]), num_nodes), -9, device=case[0].device) for _ in range(4)]
    implementation(*case, *tree)
    return [tensor.cpu() for tensor in tree]


@pytest.mark.parametrize("num_nodes", [2, 12, 33, 64])
@pytest.mark.parametrize(("requests", "count"), [(1, 1), (3, 40), (2, 300), (0, 8)])
def test_packs_as_torch_does(kernel_device, requests, count, num_nodes):
    case = candidates(requests, count, torch.Generator().manual_seed(count))
    expected = pack(tree_pack_batched, case, num_nodes)
    got = pack(tree_pack_cuda, [tensor.to(kernel_device) for tensor in case], num_nodes)
    for tensor, other in zip(got, expected, strict=True):
        assert torch.equal(tensor, other)


def test_many_candidates_and_wide_scores_go_through_torch(kernel_device, monkeypatch):
    monkeypatch.setattr("plugins.tree_pack.cuda.MOST_CANDIDATES", 10)
    for case in (candidates(2, 11, torch.Generator().manual_seed(0)), candidates(2, 9, torch.Generator())):
        wide = [*case[:2], case[2].double(), case[3]]
        for each in (case, wide):
            got = pack(tree_pack_cuda, [tensor.to(kernel_device) for tensor in each], 6)
            assert torch.equal(got[3], pack(tree_pack_batched, each, 6)[3])


def test_candidates_that_do_not_fit_are_refused(kernel_device):
    ids, parents, scores, roots = (t.to(kernel_device) for t in candidates(2, 9, torch.Generator()))
    with pytest.raises(KernelError, match="candidate_parents is"):
        pack(tree_pack_cuda, [ids, parents[:, :8], scores, roots], 4)
    with pytest.raises(KernelError, match="must be contiguous"):
        pack(tree_pack_cuda, [ids, parents, scores.T.contiguous().T, roots], 4)
