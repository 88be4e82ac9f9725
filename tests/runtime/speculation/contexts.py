"""Draft contexts of texts, and checks that every draft tree must pass."""

import torch

from runtime.speculation.drafter import GivenContext


def make_context(texts, history_len=None, block_tables=None, hidden_size=4, **params) -> GivenContext:
    """Greedy requests over `texts`, lists of token ids; entries past a text are a token that must not be used."""
    length = history_len or max(map(len, texts))
    history = torch.full((len(texts), length), 10**9)
    for row, text in enumerate(texts):
        history[row, : len(text)] = torch.tensor(text)
    positions = torch.tensor([len(text) - 1 for text in texts])

    def per_request(name, default, dtype):
        return torch.as_tensor(params.get(name, default)).to(dtype).expand(len(texts)).contiguous()

    return GivenContext(
        root_ids=torch.tensor([text[-1] for text in texts]),
        positions=positions,
        hidden=torch.zeros(len(texts), hidden_size),
        history=history,
        block_tables=torch.zeros(len(texts), 1, dtype=torch.int64) if block_tables is None else block_tables,
        temperature=per_request("temperature", 0.0, torch.float32),
        top_k=per_request("top_k", 0, torch.int64),
        top_p=per_request("top_p", 1.0, torch.float32),
        min_p=per_request("min_p", 0.0, torch.float32),
        seed=per_request("seed", 0, torch.int64),
        sample_index=per_request("sample_index", 0, torch.int64),
    )


def check_tree(tree, root_ids, num_nodes) -> None:
    """Assert the form that `DraftTree` promises."""
    for request, root in enumerate(root_ids.tolist()):
        tokens, parents, depths, ancestors = (tensor[request].tolist() for tensor in tree)
        assert len(tokens) == num_nodes
        assert (tokens[0], parents[0], depths[0], ancestors[0]) == (root, 0, 0, 1)
        num_used = num_nodes - tokens.count(-1)
        assert -1 not in tokens[:num_used], "padding comes last"
        for node in range(1, num_nodes):
            bit = (1 << node) - (1 << 64 if node == 63 else 0)
            if node < num_used:
                parent = parents[node]
                assert 0 <= parent < node
                assert depths[node] == depths[parent] + 1
                assert ancestors[node] == ancestors[parent] | bit
            else:
                assert (parents[node], depths[node], ancestors[node]) == (0, 0, bit | 1)
        used = list(zip(parents[1:num_used], tokens[1:num_used], strict=True))
        assert len(set(used)) == len(used), "siblings differ"


def paths(tree, request=0) -> set[tuple[int, ...]]:
    """The drafted tokens on the way to each node of one request's tree, the root's left out."""
    tokens, parents = tree.token_ids[request].tolist(), tree.parents[request].tolist()
    found: list[tuple[int, ...]] = [()]
    for node in range(1, len(tokens)):
        found.append((*found[parents[node]], tokens[node]) if tokens[node] >= 0 else ())
    return set(found) - {()}
