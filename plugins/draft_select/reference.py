"""Continuations by the letter, one request in Python floats: the oracle."""

import math


def draft_select_reference(
    logits: list[list[float]], beam_scores: list[float], count: int
) -> list[tuple[float, int, int]]:
    """Return (score, beam, index of the logit) of the best, best first; any noise is in the logits already."""
    found = []
    for beam, row in enumerate(logits):
        largest = max(row)
        total = largest + math.log(sum(math.exp(logit - largest) for logit in row))
        found += [(beam_scores[beam] + logit - total, beam, index) for index, logit in enumerate(row)]
    return sorted(found, key=lambda entry: (-entry[0], entry[1], entry[2]))[:count]
