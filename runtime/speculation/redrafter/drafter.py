"""ReDrafter: a beam search with the draft head, whose continuations are packed into a tree.

Every continuation of a beam is another path, so the candidates of all depths form a prefix tree as they are: nothing
has to be merged.
"""

import logging

import torch

from plugins.draft_pass import DraftTexts, DrawNoise
from plugins.draft_pass.cuda import DraftPass
from plugins.draft_pass.plan import PassSizes
from plugins.tree_pack import tree_pack
from runtime.batch import Batch
from runtime.kv.cache import KVCache
from runtime.speculation.drafter import DraftContext
from runtime.speculation.redrafter.head import RunsHead
from runtime.speculation.redrafter.search import best_continuations
from runtime.speculation.tree import DraftTree, TreeShape

_log = logging.getLogger("enginewright.speculation")


class ReDrafter:
    """See Drafter. Has no cache: the target's last hidden state is all it needs.

    Args:
        embedding: (V, H), the target's input embedding, in the head's dtype.
        vocab_ids: (V_draft,) int64, the token of each of the head's logits.
        draft_pass: drafts whole trees in one launch; what it refuses is searched with torch, and logged once.
    """

    name = "redrafter"

    def __init__(
        self, head: RunsHead, embedding: torch.Tensor, vocab_ids: torch.Tensor, draft_pass: DraftPass | None = None
    ) -> None:
        self._head = head
        self._embedding = embedding
        self._vocab_ids = vocab_ids
        self.draft_pass = draft_pass
        self._refused: set[str] = set()
        self.caches: list[KVCache] = []

    @torch.inference_mode()
    def propose(self, context: DraftContext, shape: TreeShape) -> DraftTree:
        """Draft with `num_beams` beams over `depth` steps, then keep the N - 1 best nodes.

        At each depth the max(W, N - 1) best continuations by cumulative log-probability are candidates, and the W best
        go on: no node beyond them can be among the tree's.

        Above temperature 0 a token's log-probability is that of softmax(logits + T * noise), with the noise of the
        target's own draw at that position: tokens rank by it as they do in the draw.
        """
        if self.draft_pass is not None:
            texts, draws = _given_texts(context) if context.texts is None else context.texts
            sizes = PassSizes(len(texts.slots), shape.num_nodes, shape.num_beams, shape.depth)
            if self._takes(self.draft_pass, sizes):
                return DraftTree(*self.draft_pass(sizes, texts, draws if context.samples else None))
        noise = DrawNoise(context.temperature, context.seed, context.sample_index) if context.samples else None
        return self._search(context, shape, noise)

    def _takes(self, draft_pass: DraftPass, sizes: PassSizes) -> bool:
        refusal = draft_pass.refusal(sizes)
        if refusal is not None and refusal not in self._refused:
            self._refused.add(refusal)
            _log.warning("drafts through torch, many times slower: %s", refusal)
        return refusal is None

    def _search(self, context: DraftContext, shape: TreeShape, noise: DrawNoise | None) -> DraftTree:
        head = self._head
        begun = head.begin(context.hidden.to(self._embedding.dtype))
        state = head.advance(self._embedding[context.root_ids], None)
        batch = torch.arange(len(begun), device=begun.device).unsqueeze(1)
        beam_scores = begun.new_zeros(len(begun), 1, dtype=torch.float32)
        beam_nodes = torch.full_like(batch, -1)
        ids, parents, scores = [], [], []
        num_candidates = 0
        for depth in range(1, shape.depth + 1):
            width = beam_scores.shape[1]
            logits = head.logits(begun.repeat_interleave(width, 0), state).unflatten(0, (-1, width))
            best = best_continuations(
                logits, beam_scores, beam_nodes, self._vocab_ids, max(shape.num_beams, shape.num_nodes - 1), noise,
                context.positions + depth,
            )  # fmt: skip
            ids.append(best.token_ids)
            parents.append(best.parents)
            scores.append(best.scores)
            if depth < shape.depth:
                going_on = slice(shape.num_beams)
                beam_scores = best.scores[:, going_on]
                nodes = num_candidates + torch.arange(beam_scores.shape[1], device=begun.device)
                beam_nodes = nodes.expand_as(beam_scores)
                rows = (batch * width + best.beams[:, going_on]).flatten()
                state = head.advance(self._embedding[best.token_ids[:, going_on].flatten()], state[rows])
                num_candidates += best.scores.shape[1]
        tree = tree_pack(
            torch.cat(ids, 1), torch.cat(parents, 1), torch.cat(scores, 1), context.root_ids, shape.num_nodes
        )
        return DraftTree(*tree)

    def follow(self, batch: Batch) -> None:
        """Nothing to see: no state outlives a step."""


def _given_texts(context: DraftContext) -> tuple[DraftTexts, DrawNoise]:
    """Each request its own slot."""
    slots = torch.arange(len(context.positions), device=context.positions.device)
    history = context.history.scatter(1, context.positions.unsqueeze(1), context.root_ids.unsqueeze(1))
    texts = DraftTexts(slots, context.hidden.float(), context.positions + 1, history)
    return texts, DrawNoise(context.temperature, context.seed, context.sample_index)
