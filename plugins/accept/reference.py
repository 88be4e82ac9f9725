"""The walk by the letter, one request in Python lists: the oracle."""


def accept_reference(
    tree_ids: list[int], parents: list[int], depths: list[int], drawn: list[int]
) -> tuple[list[int], list[int]]:
    """Return the emitted tokens and the nodes that chose them."""
    tokens, nodes, node = [], [], 0
    while True:
        tokens.append(drawn[node])
        nodes.append(node)
        children = [child for child in range(len(tree_ids)) if depths[child] > 0 and parents[child] == node]
        matching = [child for child in children if tree_ids[child] == drawn[node]]
        if not matching:
            return tokens, nodes
        node = matching[0]
