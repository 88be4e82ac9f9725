"""Sample and match on the worked example of `DraftTree`, and on random trees against a walk node by node."""

import random
import re
from pathlib import Path

import torch

from runtime.speculation.acceptance import accept
from runtime.speculation.tree import DraftTree, root_only
from tests.runtime.drafting import build_tree

PAGE = Path(__file__).parents[2] / "docs/speculation.md"
SEE, THE, CAT, DOG, SAT, RAN, AWAY, UP = range(8)


def as_tree(*rows):
    return DraftTree(*(torch.tensor([row[part] for row in rows]) for part in range(4)))


EXAMPLE = as_tree(build_tree([SEE, THE, CAT, DOG, SAT, RAN], [0, 0, 1, 1, 2, 2], 7))


def says(*token_of_node):
    """A target that says one token per node, the same in every tree."""
    return lambda nodes, level, alive: torch.tensor(token_of_node)[nodes]


def test_the_worked_example():
    accepted = accept(EXAMPLE, 3, says(THE, CAT, RAN, UP, UP, AWAY, UP))
    assert accepted.counts.tolist() == [4]
    assert accepted.token_ids.tolist() == [[THE, CAT, RAN, AWAY]]
    assert accepted.nodes.tolist() == [[0, 1, 2, 5]]
    assert EXAMPLE.depths.tolist() == [[0, 1, 2, 2, 3, 3, 0]]
    sets = [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 2, 4], [0, 1, 2, 5], [0, 6]]
    assert EXAMPLE.ancestors.tolist() == [[sum(1 << bit for bit in bits) for bits in sets]]


def test_the_doc_page_and_the_docstring_tell_the_same_example():
    words = ["see", "the", "cat", "dog", "sat", "ran", "away", "up"]
    tokens, parents, depths, ancestors = (part[0].tolist() for part in EXAMPLE)
    sees = [[node for node in range(7) if bits >> node & 1] for bits in ancestors]

    def cells(label):
        (row,) = re.findall(rf"^\| {label}[^|]* \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
        return [cell.strip() for cell in row.split("|")]

    assert cells("token") == [words[token] if token >= 0 else "padding" for token in tokens]
    assert cells("parent") == ["", *map(str, parents[1:6]), ""]
    assert cells("depth") == list(map(str, depths))
    assert cells("sees") == [" ".join(map(str, nodes)) for nodes in sees]
    rows = dict(re.findall(r"^ +(token_ids|parents|depths|ancestors) +(.*)$", DraftTree.__doc__, re.MULTILINE))
    assert rows["token_ids"].split() == [words[token] if token >= 0 else "-1" for token in tokens]
    assert rows["parents"].split() == list(map(str, parents))
    assert rows["depths"].split() == list(map(str, depths))
    assert rows["ancestors"].split() == ["{" + ",".join(map(str, nodes)) + "}" for nodes in sees]


def test_a_token_that_no_child_has_ends_the_walk_there():
    accepted = accept(EXAMPLE, 3, says(THE, UP, RAN, UP, UP, AWAY, UP))
    assert accepted.counts.tolist() == [2]
    assert accepted.token_ids[0, :2].tolist() == [THE, UP]


def test_the_same_token_elsewhere_in_the_tree_does_not_count():
    accepted = accept(EXAMPLE, 3, says(SAT, UP, UP, UP, UP, UP, UP))  # "sat" is in the tree, but no child of the root
    assert accepted.counts.tolist() == [1]


def test_a_root_alone_emits_one_token():
    tree = root_only(torch.tensor([SEE, CAT]), 4)
    accepted = accept(tree, 2, says(UP, UP, UP, UP))
    assert accepted.counts.tolist() == [1, 1]
    assert accepted.token_ids[:, 0].tolist() == [UP, UP]


def test_random_trees_are_walked_as_one_would_by_hand():
    rng = random.Random(0)
    for _ in range(50):
        rows, said = [], [rng.randrange(4) for _ in range(10)]
        for _ in range(3):
            tokens, parents, depths = [0], [0], [0]
            while len(tokens) < 10:
                parent, token = rng.randrange(len(tokens)), rng.randrange(4)
                taken = (parent, token) in set(zip(parents[1:], tokens[1:], strict=True))
                if depths[parent] == 5 or taken:
                    if rng.random() < 0.2:
                        break
                    continue
                tokens.append(token)
                parents.append(parent)
                depths.append(depths[parent] + 1)
            rows.append(build_tree(tokens, parents, 10))
        accepted = accept(as_tree(*rows), 5, says(*said))
        for row, (tokens, parents, *_) in enumerate(rows):
            node, expected = 0, []
            while node is not None:
                expected.append(said[node])
                children = [i for i in range(1, 10) if tokens[i] == said[node] and parents[i] == node]
                node = children[0] if children else None
            assert accepted.token_ids[row, : accepted.counts[row]].tolist() == expected
