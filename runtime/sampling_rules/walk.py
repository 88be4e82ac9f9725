"""Rules on the walk down a step's draft trees: at each node, those of the text that leads to it."""

from collections.abc import Mapping, Sequence

import torch

from runtime.sampling_rules.rules import TextRules


def adjust(
    logits: torch.Tensor, rules: Mapping[int, TextRules], alive: torch.Tensor, drawn: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return a copy of the logits in which the rows with rules follow them. Waits for the device.

    Args:
        logits: (E, V) any float dtype, of the node that each request's walk has reached. They become at least
            float32, so that a small bias is not rounded away.
        rules: of some of the E rows.
        alive: (E,) bool, whose walks still go on.
        drawn: (E,) tokens of each level above, which are the path to the node.
    """
    adjusted = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    is_alive = alive.tolist()
    paths = torch.stack(list(drawn), dim=1).tolist() if drawn else [[]] * len(logits)
    for row, text_rules in rules.items():
        if is_alive[row]:
            adjusted[row] = text_rules.apply(adjusted[row], paths[row])
    return adjusted
