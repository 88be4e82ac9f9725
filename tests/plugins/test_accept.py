"""The walk through draft trees: the worked example, and every implementation against the oracle."""

import pytest
import torch

from plugins.accept import accept
from plugins.accept.cuda import accept_cuda
from plugins.accept.reference import accept_reference
from plugins.cuda.errors import KernelError

SEE, THE, CAT, DOG, SAT, RAN, AWAY = range(10, 17)


def random_trees(requests, num_nodes, generator):
    """Ids from few tokens, so that the walk goes deep; some padding at the end."""
    ids, parents, depths = [], [], []
    for _ in range(requests):
        used = int(torch.randint(1, num_nodes + 1, (1,), generator=generator))
        above, depth = [0], [0]
        for node in range(1, used):
            above.append(int(torch.randint(max(0, node - 4), node, (1,), generator=generator)))
            depth.append(depth[above[-1]] + 1)
        tokens = torch.randint(0, 3, (used,), generator=generator).tolist()
        padding = num_nodes - used
        ids.append(tokens + [-1] * padding)
        parents.append(above + [0] * padding)
        depths.append(depth + [0] * padding)
    drawn = torch.randint(0, 3, (requests, num_nodes), generator=generator)
    return *(torch.tensor(rows, dtype=torch.int64).view(requests, num_nodes) for rows in (ids, parents, depths)), drawn


def check(path, tree, drawn):
    for request, row in enumerate(zip(*(tensor.tolist() for tensor in (*tree, drawn)), strict=True)):
        tokens, nodes = accept_reference(*row)
        count = int(path[2][request])
        assert count == len(tokens)
        assert path[0][request, :count].tolist() == tokens
        assert path[1][request, :count].tolist() == nodes


def test_the_worked_example_is_accepted_as_documented():
    ids = torch.tensor([[SEE, THE, CAT, DOG, SAT, RAN, -1]])
    parents, depths = torch.tensor([[0, 0, 1, 1, 2, 2, 0]]), torch.tensor([[0, 1, 2, 2, 3, 3, 0]])
    path = accept(ids, parents, depths, torch.tensor([[THE, CAT, RAN, SEE, SEE, AWAY, SEE]]), 3)
    assert path.counts.tolist() == [4]
    assert path.token_ids.tolist() == [[THE, CAT, RAN, AWAY]]
    assert path.nodes.tolist() == [[0, 1, 2, 5]]


@pytest.mark.parametrize("num_nodes", [2, 33, 64])
def test_every_request_walks_as_the_oracle(num_nodes):
    generator = torch.Generator().manual_seed(num_nodes)
    *tree, drawn = random_trees(40, num_nodes, generator)
    check(accept(*tree, drawn, int(tree[2].max())), tree, drawn)


@pytest.mark.parametrize("num_nodes", [1, 2, 32, 33, 64])
@pytest.mark.parametrize("requests", [0, 1, 5])
def test_the_kernel_walks_as_the_oracle(kernel_device, requests, num_nodes):
    generator = torch.Generator().manual_seed(num_nodes)
    *tree, drawn = random_trees(requests, num_nodes, generator)
    drawn[requests // 2 :, 0] = -1  # no token: nothing goes on from there
    levels = (int(tree[2].max()) if requests else 0) + 1
    path = [torch.full((requests, levels), -9), torch.full((requests, levels), -9), torch.full((requests,), -9)]
    path = [tensor.to(kernel_device) for tensor in path]
    accept_cuda(*(tensor.to(kernel_device) for tensor in (*tree, drawn)), *path)
    check([tensor.cpu() for tensor in path], tree, drawn)


def test_larger_trees_are_refused(kernel_device):
    tree = torch.zeros(1, 65, dtype=torch.int64, device=kernel_device)
    out = torch.zeros(1, 2, dtype=torch.int64, device=kernel_device)
    with pytest.raises(KernelError, match="trees of 65 nodes"):
        accept_cuda(tree, tree, tree, tree, out, out.clone(), out[:, 0].contiguous())
