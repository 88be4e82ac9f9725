"""A smaller model with the target's tokenizer drafts: a chain by its own draws, and the runners-up beside it.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023), for the two-tier scheme.
Acceptance is not theirs: the target draws for itself, and a draft helps where both draw the same token.
"""

from dataclasses import replace
from typing import NamedTuple

import torch

from plugins.sample import sample
from plugins.sample.philox import gumbel_noise
from runtime.batch import Batch
from runtime.errors import EnginewrightError
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.speculation.candidates import Candidates, pack
from runtime.speculation.drafter import DraftContext
from runtime.speculation.tree import DraftTree, TreeShape
from runtime.text.tokenizer import Tokenizer

_POOL_PER_BEAM = 4  # likely tokens among which noise may raise a runner-up


class _Choice(NamedTuple):
    """What one pass found: the chain's next token first, then the model's most likely ones. P = 1 + pool."""

    token_ids: torch.Tensor  # (B, P) int64
    logits: torch.Tensor  # (B, P) float64, -inf where a token repeats the first
    other_mass: torch.Tensor  # (B, 1) float64, log of the sum of exp(logits) of all other tokens


class ModelDrafter:
    """See `runtime.speculation.drafter.Drafter`.

    Its cache has as many blocks of the same size as the target's and is read through the same block tables, so that
    shared prefixes, copies, preemption and compaction hold for both.

    decoder: of the drafting model, with rotary positions for the longest text and a tree beyond it.
    cache: of the drafting model.
    vocab_size: of the target; what the drafting model knows beyond it is never proposed.
    """

    name = "model"
    caches: list[KVCache]

    def __init__(self, decoder: Decoder, cache: KVCache, vocab_size: int) -> None:
        self.caches = [cache]
        self._decoder = decoder
        self._cache = cache
        self._vocab_size = vocab_size

    @torch.inference_mode()
    def propose(self, context: DraftContext, shape: TreeShape) -> DraftTree:
        """Run `shape.depth` passes of one token; at each depth the tree gets the `shape.num_beams` best tokens."""
        return pack(self.candidates(context, shape), context.root_ids, shape.num_nodes)

    @torch.inference_mode()
    def candidates(self, context: DraftContext, shape: TreeShape) -> Candidates:
        """List what `propose` packs."""
        choices: list[_Choice] = []
        token_ids = context.root_ids
        for ahead in range(shape.depth):
            logits = self._next_logits(token_ids, context, ahead)
            token_ids = _draw(logits, context, context.positions + ahead + 1)
            choices.append(_choose(logits, token_ids, _POOL_PER_BEAM * (shape.num_beams - 1)))
        return _score(choices, context, shape.num_beams)

    @torch.inference_mode()
    def follow(self, batch: Batch) -> None:
        """Compute keys and values of every token that the target computed, wherever drafting had left its own."""
        known = self._known(batch.token_ids)  # padding of trees too becomes some token, which none descends from
        self._decoder.forward(replace(batch, token_ids=known, logit_rows=batch.logit_rows[:0]), self._cache)

    def _next_logits(self, token_ids: torch.Tensor, context: DraftContext, ahead: int) -> torch.Tensor:
        """Logits (B, V) after `token_ids` (B,) at `ahead` tokens past the root."""
        positions = context.positions + ahead
        rows = torch.arange(len(positions) + 1, device=positions.device)
        batch = Batch(
            token_ids=self._known(token_ids),
            positions=positions,
            cache_positions=positions,
            query_starts=rows,
            context_lens=positions + 1,
            block_tables=context.block_tables,
            logit_rows=rows[:-1],
            max_query_len=1,
        )
        return self._decoder.forward(batch, self._cache).logits[:, : self._vocab_size]

    def _known(self, token_ids: torch.Tensor) -> torch.Tensor:
        return token_ids.clamp(0, self._decoder.spec.vocab_size - 1)


def check_same_tokenizer(target: Tokenizer, draft: Tokenizer) -> None:
    """Make sure that a token id means the same text to both models; unused ids of a padded head do not matter.

    Raises:
        EnginewrightError: an id differs; the message names the first.
    """
    target_tokens, draft_tokens = _tokens_by_id(target), _tokens_by_id(draft)
    if target_tokens == draft_tokens:
        return
    first = min(
        token_id
        for token_id in target_tokens.keys() | draft_tokens.keys()
        if target_tokens.get(token_id) != draft_tokens.get(token_id)
    )
    raise EnginewrightError(
        f"the draft model has another tokenizer: token {first} is {_describe(draft_tokens.get(first))}, in the "
        f"target it is {_describe(target_tokens.get(first))}; choose a smaller model of the target's own family"
    )


def _tokens_by_id(tokenizer: Tokenizer) -> dict[int, tuple[str, bool]]:
    """Each id's text, and whether it is special."""
    special = {token_id for token_id, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    return {token_id: (text, token_id in special) for text, token_id in vocabulary.items()}


def _describe(token: tuple[str, bool] | None) -> str:
    if token is None:
        return "missing"
    return f"{token[0]!r}, special" if token[1] else repr(token[0])


def _draw(logits: torch.Tensor, context: DraftContext, positions: torch.Tensor) -> torch.Tensor:
    """Draw as the target would at `positions` (B,), with its filters and its noise: logits (B, V) -> (B,)."""
    return sample(
        logits, context.temperature, context.top_k, context.top_p, context.min_p, context.seed,
        context.sample_index, positions, torch.empty_like(positions),
    )  # fmt: skip


def _choose(logits: torch.Tensor, drawn: torch.Tensor, pool_len: int) -> _Choice:
    """Put the drawn tokens (B,) before the `pool_len` most likely ones of logits (B, V)."""
    values, pool = logits.topk(min(pool_len, logits.shape[1]), dim=1)
    token_ids = torch.cat([drawn.unsqueeze(1), pool], dim=1)
    values = values.masked_fill(pool == drawn.unsqueeze(1), -torch.inf)
    others = logits.double().scatter(1, token_ids, -torch.inf)
    return _Choice(
        token_ids,
        torch.cat([logits.gather(1, drawn.unsqueeze(1)), values], dim=1).double(),
        others.logsumexp(dim=1, keepdim=True),
    )


def _score(choices: list[_Choice], context: DraftContext, num_beams: int) -> Candidates:
    """Keep W tokens per depth, children of the chain's token above: K choices -> (B, K * W) candidates.

    A token's score is log(softmax(logits + T * noise)), as tokens rank by logits + T * noise in a draw: the plain
    log-probability at T = 0, and nearly certain for the drawn token where the noise sets it apart.
    """
    token_ids, logits, other_mass = (torch.stack(tensors, dim=1) for tensors in zip(*choices, strict=True))
    depth = token_ids.shape[1]
    ahead = torch.arange(1, depth + 1, device=token_ids.device).view(1, -1, 1)

    def per_request(values: torch.Tensor) -> torch.Tensor:
        return values.view(-1, 1, 1)

    noise = gumbel_noise(
        token_ids, per_request(context.seed), per_request(context.sample_index), per_request(context.positions) + ahead
    )
    ranks = logits + per_request(context.temperature.double()) * noise
    drawn, others = ranks[..., :1], ranks[..., 1:]
    others = others.masked_fill(others > drawn, -torch.inf)  # what ranks above the drawn token was filtered out
    ranks = torch.cat([drawn, others], dim=2)
    logprobs = ranks - torch.logaddexp(ranks.logsumexp(dim=2, keepdim=True), other_mass)

    siblings, where = logprobs[..., 1:].topk(min(num_beams - 1, others.shape[2]), dim=2)
    ids = torch.cat([token_ids[..., :1], token_ids[..., 1:].gather(2, where)], dim=2)
    above = logprobs[..., :1].cumsum(dim=1) - logprobs[..., :1]  # of the chain, up to each depth's parent
    scores = torch.cat([logprobs[..., :1], siblings], dim=2) + above
    width = ids.shape[2]
    parents = (torch.arange(depth, device=ids.device) - 1) * width
    parents = torch.where(parents < 0, -1, parents).view(1, -1, 1).expand_as(ids)
    return Candidates(ids.flatten(1), parents.flatten(1), scores.flatten(1))
