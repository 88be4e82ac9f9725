"""Drafters for tests: trees that are partly right, because they were told what the target is going to say."""

import random

import torch

from runtime.speculation.tree import DraftTree, TreeShape


def build_tree(token_ids: list[int], parents: list[int], num_nodes: int) -> list[list[int]]:
    """Rows of a DraftTree for one request, worked out node by node; missing nodes are padding."""
    depths, ancestors = [0], [1]
    for node in range(1, len(token_ids)):
        depths.append(depths[parents[node]] + 1)
        ancestors.append(ancestors[parents[node]] | 1 << node)
    for node in range(len(token_ids), num_nodes):
        depths.append(0)
        ancestors.append(1 | 1 << node)
    padding = num_nodes - len(token_ids)
    signed = [bits - 2**64 if bits >= 2**63 else bits for bits in ancestors]
    return [token_ids + [-1] * padding, parents + [0] * padding, depths, signed]


class Oracle:
    """Knows texts in advance: random trees in which a request's next tokens turn up at random nodes.

    `accuracy`: the chance that a node's children include the true token.
    """

    name = "oracle"
    caches: list = []  # noqa: RUF012

    def __init__(self, texts: list[list[int]], accuracy: float = 0.8, seed: int = 0, vocab_size: int = 260) -> None:
        self._texts = texts
        self._accuracy = accuracy
        self._rng = random.Random(seed)
        self._vocab_size = vocab_size
        self.num_batches = 0

    def propose(self, context, shape: TreeShape) -> DraftTree:
        rows = [self._tree(context.history[i].tolist(), int(at), shape) for i, at in enumerate(context.positions)]
        assert torch.equal(context.root_ids, context.history.gather(1, context.positions.unsqueeze(1)).squeeze(1))
        return DraftTree(*(torch.tensor([row[part] for row in rows]) for part in range(4)))

    def follow(self, batch) -> None:
        self.num_batches += 1

    def _tree(self, history: list[int], position: int, shape: TreeShape) -> list[list[int]]:
        known = history[: position + 1]
        coming = next((text[position + 1 :] for text in self._texts if text[: position + 1] == known), [])
        size = self._rng.randint(1, shape.num_nodes)
        tokens, parents, depths = [known[-1]], [0], [0]
        true_node: int | None = 0
        while len(tokens) < size:
            on_path = true_node is not None and depths[true_node] < min(shape.depth, len(coming))
            if on_path and self._rng.random() < self._accuracy:
                parent, token = true_node, coming[depths[true_node]]
                true_node = len(tokens)
            else:
                open_nodes = [node for node, depth in enumerate(depths) if depth < shape.depth]
                parent, token = self._rng.choice(open_nodes), self._rng.randrange(self._vocab_size)
                if any(p == parent and t == token for p, t in zip(parents[1:], tokens[1:], strict=True)):
                    continue
                if on_path and parent == true_node and token == coming[depths[true_node]]:
                    continue
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
        return build_tree(tokens, parents, shape.num_nodes)


class Always:
    """A policy that always wants the same trees, or takes turns through several, None for none among them."""

    def __init__(self, *shapes: TreeShape | None) -> None:
        self._shapes = shapes
        self.num_steps = 0
        self.emitted: list[int] = []

    def choose(self, num_decoding: int) -> TreeShape | None:
        self.num_steps += 1
        return self._shapes[self.num_steps % len(self._shapes)]

    def observe(self, shape: TreeShape, num_requests: int, emitted_tokens: int) -> None:
        assert num_requests <= emitted_tokens <= num_requests * (shape.depth + 1)
        self.emitted.append(emitted_tokens)
