"""The draft tree: what a drafter proposes and one pass of the target verifies. Knows neither drafter nor target."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from runtime.errors import EnginewrightError

MAX_NODES = 64  # a node's ancestors are the bits of one int64


@dataclass(frozen=True)
class TreeShape:
    """How large the trees of a step are; every speculating request of a step has the same.

    num_nodes: N, rows that the target computes per request: the root and N - 1 drafted nodes.
    num_beams: W, prefixes that a drafter expands at each depth.
    depth: K, drafted tokens on the longest path.

    Raises:
        EnginewrightError: a value out of its bounds.
    """

    num_nodes: int
    num_beams: int
    depth: int

    def __post_init__(self) -> None:
        _require("num_nodes", self.num_nodes, 2, MAX_NODES)
        _require("depth", self.depth, 1, self.num_nodes - 1)
        _require("num_beams", self.num_beams, 1, MAX_NODES)


class DraftTree(NamedTuple):
    """One tree per request, parents before children. All (B, N) int64 on one device.

    Node 0 is the root: the true token, emitted already but not yet computed by the target. Unused nodes at the end are
    padding, which no node descends from and no token equals.

    Example: beams "the cat sat" and "the cat ran" and "the dog" after the true token "see", N = 7:

        node        0     1     2     3     4     5     6
        token_ids   see   the   cat   dog   sat   ran   -1
        parents     0     0     1     1     2     2     0
        depths      0     1     2     2     3     3     0
        ancestors   {0}   {0,1} {0,1,2} {0,1,3} {0,1,2,4} {0,1,2,5} {0,6}
    """

    token_ids: torch.Tensor  # -1 where padding
    parents: torch.Tensor  # index of each node's parent; 0 for the root and padding
    depths: torch.Tensor  # edges from the root; 0 for padding
    ancestors: torch.Tensor  # bit j of node i: i sees j, itself included; padding sees the root and itself


def root_only(token_ids: torch.Tensor, num_nodes: int) -> DraftTree:
    """Trees without drafted nodes: (B,) true tokens, padded to (B, num_nodes)."""
    padded = token_ids.new_full((len(token_ids), num_nodes), -1)
    padded[:, 0] = token_ids
    zeros = torch.zeros_like(padded)
    bits = torch.bitwise_left_shift(torch.ones_like(padded), torch.arange(num_nodes, device=padded.device))
    return DraftTree(padded, zeros, zeros, bits | 1)


def _require(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise EnginewrightError(f"draft tree: {name} is {value}; it must be between {low} and {high}")
