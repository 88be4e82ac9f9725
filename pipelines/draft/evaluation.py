"""What a head is worth, found offline: greedy paths of the target once, then trees walked along them.

A tree accepts exactly what the target's own continuation repeats, so no target pass is needed once the path is known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pipelines.draft.lockstep import Lockstep
from pipelines.draft.target import TargetModel
from runtime.speculation.drafter import Drafter, GivenContext
from runtime.speculation.redrafter.head_file import TreeStatistics
from runtime.speculation.tree import DraftTree, TreeShape


class GreedyPath(NamedTuple):
    """A prompt and the target's greedy continuation of it."""

    kind: str
    token_ids: torch.Tensor  # (n,) int64
    hidden: torch.Tensor  # (n, H), final hidden states
    prompt_len: int


def greedy_paths(
    target: TargetModel, prompts: Sequence[tuple[str, list[int]]], num_tokens: int, eos_token_ids: frozenset[int]
) -> list[GreedyPath]:
    """Continue every (kind, token ids) greedily by `num_tokens`, or to the end of the text, which belongs to it."""
    device = target.device
    lengths = torch.tensor([len(ids) for _, ids in prompts], device=device)
    total = int(lengths.max()) + num_tokens
    given = torch.tensor([ids + [0] * (total - len(ids)) for _, ids in prompts], device=device)
    lockstep = Lockstep(target, len(prompts), total)
    hidden = torch.empty(len(prompts), total, target.spec.hidden_size, dtype=target.dtype, device=device)
    for position in range(total - 1):
        output = lockstep.read(given[:, position], torch.full_like(lengths, position))
        hidden[:, position] = output.hidden
        chosen = output.logits.argmax(-1)
        given[:, position + 1] = torch.where(position + 1 < lengths, given[:, position + 1], chosen)
    eos = torch.tensor(sorted(eos_token_ids), device=device)
    paths = []
    for row, (kind, ids) in enumerate(prompts):
        answer = given[row, len(ids) : len(ids) + num_tokens]
        ends = torch.nonzero(torch.isin(answer, eos)).flatten().tolist()
        length = len(ids) + (ends[0] + 1 if ends else num_tokens)
        paths.append(GreedyPath(kind, given[row, :length], hidden[row, :length].clone(), len(ids)))
    return paths


def accepted_depths(tree: DraftTree, continuation: torch.Tensor) -> torch.Tensor:
    """(B,) how far each tree follows (B, K) tokens after its root; -1 in the continuation is past its end."""
    expected = torch.cat([tree.token_ids[:, :1], continuation], dim=1).gather(1, tree.depths)
    follows = (tree.token_ids == expected) & ((tree.depths > 0) | (tree.parents == 0))
    follows[:, 1:] &= tree.depths[:, 1:] > 0  # padding follows nothing
    bit = torch.arange(tree.token_ids.shape[1], device=tree.token_ids.device)
    matched = (follows.long() << bit).sum(1, keepdim=True)
    is_reached = (tree.ancestors & ~matched) == 0
    return (tree.depths * is_reached).amax(1)


@torch.inference_mode()
def walk_paths(drafter: Drafter, paths: Sequence[GreedyPath], shape: TreeShape) -> TreeStatistics:
    """Speculate along every path at once, as a greedy engine would.

    The prefill and the token it gives are left out: accepted length is (tokens - 1) / verify steps of each prompt,
    summed before the division, by kind. A step's tokens past the end of the path are not counted.
    """
    usable = [path for path in paths if len(path.token_ids) > path.prompt_len + 1]
    longest = max(len(path.token_ids) for path in usable) + shape.depth
    pad = [torch.nn.functional.pad(path.token_ids, (0, longest - len(path.token_ids)), value=-1) for path in usable]
    tokens = torch.stack(pad)
    lengths = torch.tensor([len(path.token_ids) for path in usable])
    at = torch.tensor([path.prompt_len for path in usable])  # the root's index
    steps = torch.zeros_like(at)
    reached = torch.zeros(shape.depth, dtype=torch.int64)
    start = at.clone()
    while len(live := torch.nonzero(at < lengths - 1).flatten()):
        roots = at[live]
        rows = live.to(tokens.device)
        index = roots.to(tokens.device)
        hidden = torch.stack(
            [usable[row].hidden[root - 1] for row, root in zip(live.tolist(), roots.tolist(), strict=True)]
        )
        tree = drafter.propose(greedy_context(tokens[rows], index, hidden), shape)
        ahead = index.unsqueeze(1) + 1 + torch.arange(shape.depth, device=tokens.device)
        accepted = accepted_depths(tree, tokens[rows].gather(1, ahead)).cpu()
        for depth in range(shape.depth):
            reached[depth] += int((accepted > depth).sum())
        steps[live] += 1
        at[live] = torch.minimum(roots + accepted + 1, lengths[live] - 1)
    emitted = at - start
    kinds = sorted({path.kind for path in usable})
    by_kind = {kind: torch.tensor([path.kind == kind for path in usable]) for kind in kinds}
    figures = {kind: float(emitted[of].sum() / steps[of].sum()) for kind, of in by_kind.items()}
    figures["mean"] = sum(figures.values()) / len(figures)
    shares = tuple(round(float(count / steps.sum()), 4) for count in reached)
    rounded = {kind: round(value, 4) for kind, value in figures.items()}
    return TreeStatistics(shape.num_nodes, shape.num_beams, shape.depth, rounded, shares)


def greedy_context(history: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor) -> GivenContext:
    """What greedy requests with these tokens (B, S), roots at `positions` (B,), have on the device."""
    zeros = torch.zeros_like(positions)
    return GivenContext(
        root_ids=history.gather(1, positions.unsqueeze(1)).squeeze(1), positions=positions, hidden=hidden,
        history=history, block_tables=zeros.unsqueeze(1), temperature=zeros.float(), top_k=zeros,
        top_p=torch.ones_like(zeros).float(), min_p=zeros.float(), seed=zeros, sample_index=zeros, samples=False,
    )  # fmt: skip
