"""Tree packing by the letter, one request in Python lists: the oracle."""

import math


def tree_pack_reference(
    candidate_ids: list[int], candidate_parents: list[int], scores: list[float], root_id: int, num_nodes: int
) -> tuple[list[int], list[int], list[int], list[set[int]]]:
    """Return token ids, parents, depths, and the set of nodes that each node sees."""
    real = [index for index, score in enumerate(scores) if score > -math.inf]
    kept = sorted(sorted(real, key=lambda index: (-scores[index], index))[: num_nodes - 1])
    token_ids, parents, depths, ancestors = [root_id], [0], [0], [{0}]
    for index in kept:
        above = candidate_parents[index]
        parent = 0 if above < 0 else 1 + kept.index(above)
        token_ids.append(candidate_ids[index])
        parents.append(parent)
        depths.append(depths[parent] + 1)
        ancestors.append(ancestors[parent] | {len(ancestors)})
    for node in range(len(token_ids), num_nodes):
        token_ids.append(-1)
        parents.append(0)
        depths.append(0)
        ancestors.append({0, node})
    return token_ids, parents, depths, ancestors
