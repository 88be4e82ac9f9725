"""The tokens of a step by the letter, one token at a time in Python numbers: the oracle."""

from collections.abc import Sequence


def place_tokens_reference(
    slots: Sequence[int],
    counts: Sequence[int],
    starts: Sequence[int],
    is_drawn: Sequence[int],
    known_ids: Sequence[int],
    num_tokens: Sequence[int],
    history: Sequence[Sequence[int]],
    tree: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None = None,
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Return token_ids, positions, cache_positions, context_lens and roots."""
    token_ids: list[int] = []
    positions: list[int] = []
    cache_positions: list[int] = []
    context_lens: list[int] = []
    roots: list[int] = []
    for request, (slot, count) in enumerate(zip(slots, counts, strict=True)):
        first = num_tokens[slot] - 1 if is_drawn[request] else starts[request]
        for index in range(count):
            depth = index
            if not is_drawn[request]:
                token = known_ids[len(token_ids)]
            elif tree is None:
                token = history[slot][first]
            else:
                token, depth = max(tree[0][request][index], 0), tree[1][request][index]
            token_ids.append(token)
            positions.append(first + depth)
            cache_positions.append(first + index)
        context_lens.append(first + count)
        roots.append(first if is_drawn[request] else first + count - 1)
    return token_ids, positions, cache_positions, context_lens, roots
